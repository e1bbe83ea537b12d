"""Ops of one's own: plain torch under a rule over named dims. `specc check` reads this file and runs none of it."""

import torch

import specc


@specc.op("b s d, d, d -> b s d", weights={"scale": "ones", "shift": "zeros"})
def dynamic_tanh(x, scale, shift, *, alpha: float = 0.5):
    """tanh(alpha x) scale + shift, in place of a norm (arXiv:2503.10622)."""
    return torch.tanh(alpha * x) * scale + shift


@specc.op("b !s d, k d -> b s d", weights={"taps": {"uniform": [0.0, 0.5]}})
def short_conv(x, taps):
    """Each channel mixes the last k tokens: y[t] = sum_i taps[i] x[t - i]. `!s`: it mixes along s."""
    past = torch.nn.functional.pad(x, (0, 0, taps.shape[0] - 1, 0))
    return sum(taps[i] * past[:, taps.shape[0] - 1 - i : past.shape[1] - i] for i in range(taps.shape[0]))
