"""A plain reference of CogVLM's layers: every token takes the matrices of its kind, all attend to all before them.

B batch, S tokens, D width, H heads, E head dim. Equations: arXiv:2311.03079 section 2.2, 'Visual expert module'."""

from __future__ import annotations

import torch
from torch import Tensor, nn

THETA = 1e4


class VisualExpertLayer(nn.Module):
    """Layer with the weights of both kinds; `language_*` for kind 0, `vision_*` for kind 1."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        shapes = {"qkv": (3 * width, width), "dense": (width, width), "gate": (inner, width), "up": (inner, width),
                  "down": (width, inner)}  # fmt: skip
        for kind in ("language", "vision"):
            for name, (rows, columns) in shapes.items():
                self.add_module(f"{kind}_{name}", nn.Linear(columns, rows, bias=False))
        self.norm1, self.norm2 = nn.RMSNorm(width, 1e-5), nn.RMSNorm(width, 1e-5)

    def own(self, name: str, x_BSD: Tensor, kind_BS: Tensor) -> Tensor:
        both = torch.stack([getattr(self, f"{kind}_{name}").weight for kind in ("language", "vision")])
        return torch.einsum("bsd,bsfd->bsf", x_BSD, both[kind_BS])

    def forward(self, x_BSD: Tensor, kind_BS: Tensor, pos_BS: Tensor) -> Tensor:
        b, s, d = x_BSD.shape
        qkv = self.own("qkv", self.norm1(x_BSD), kind_BS).reshape(b, s, 3, self.heads, d // self.heads)
        q, k, v = qkv.unbind(2)
        scores = torch.einsum("bshe,bthe->bhst", rotated(q, pos_BS), rotated(k, pos_BS)) * (d // self.heads) ** -0.5
        hidden = torch.ones(s, s, dtype=torch.bool).triu(1)
        seen = torch.einsum("bhst,bthe->bshe", scores.masked_fill(hidden, float("-inf")).softmax(-1), v)
        x = x_BSD + self.own("dense", seen.reshape(b, s, d), kind_BS)
        y = self.norm2(x)
        inner = nn.functional.silu(self.own("gate", y, kind_BS)) * self.own("up", y, kind_BS)
        return x + self.own("down", inner, kind_BS)


def rotated(x_BSHE: Tensor, pos_BS: Tensor) -> Tensor:
    """Rotary positions on pairs (i, i + E/2), as complex numbers."""
    half = x_BSHE.shape[-1] // 2
    frequency = THETA ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = pos_BS[..., None, None] * frequency
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex(x_BSHE, x_BSHE).dtype)
    z = torch.complex(x_BSHE[..., :half], x_BSHE[..., half:]) * turn
    return torch.cat([z.real, z.imag], -1)


class VisualExpertTower(nn.Module):
    def __init__(self, width: int, heads: int, inner: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisualExpertLayer(width, heads, inner) for _ in range(layers))

    def forward(self, x_BSD: Tensor, kind_BS: Tensor, pos_BS: Tensor) -> Tensor:
        for layer in self.layers:
            x_BSD = layer(x_BSD, kind_BS, pos_BS)
        return x_BSD
