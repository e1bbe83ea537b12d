"""A kernel's file from a template: words in capitals between `<` and `>` are filled in, a hash makes the name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from specc.compiler.kernels.source import plain

# What files have in common.
COMMON = {
    "CHECK": """\
def check(x, shape, dtype):
    assert x.shape == shape and x.dtype == dtype, f"{x.dtype}{list(x.shape)} is not {dtype}{list(shape)}"
    return x.contiguous()""",
    "RUNS_HERE": """\
def runs_here(x):
    return x.is_cuda or triton.knobs.runtime.interpret""",
}


def filled(kind: str, text: str, words: Mapping[str, object], place: str) -> tuple[str, str]:
    """The file's name, `KIND_` and a hash of its text, and its source; `place` is where it comes from in the spec."""
    for word, meaning in {**COMMON, **words}.items():
        text = text.replace(f"<{word}>", str(meaning))
    digest = hashlib.sha256(text.encode()).hexdigest()
    name = f"{kind}_{digest[:10]}"
    head = (
        f"# {name}: made by specc, never changed by hand. Build again after a change of the spec.\n#\n"
        f"#   {plain(place)}\n#\n# sha256 of what follows: {digest}\n\n"
    )
    return name, head + text.replace("<NAME>", name)
