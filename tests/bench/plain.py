"""The same models as one would write them by hand in a page of PyTorch: fused projections, SDPA, nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.bench.models import Model
from tests.bench.peers import Loss


def load(model: Model) -> None:
    """Nothing beside torch."""


def of(model: Model) -> tuple[nn.Module, Loss]:
    """The module, which gives its loss."""

    def loss(module: nn.Module, x: Mapping[str, Tensor]) -> Tensor:
        found: Tensor = module(x)
        return found

    return MAKERS[model.library](model), loss


def heads_of(x: Tensor, n: int) -> Tensor:
    """[B S (N E)] -> [B N S E]"""
    return x.unflatten(-1, (n, -1)).transpose(1, 2)


class Attention(nn.Module):
    """Queries, keys and values of one product."""

    def __init__(self, dim: int, heads: int, kv: int, bias: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.kv, self.causal = heads, kv, causal
        self.qkv = nn.Linear(dim, dim // heads * (heads + 2 * kv), bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None = None) -> Tensor:
        each = x.shape[-1] // self.heads
        q, k, v = self.qkv(x).split([self.heads * each, self.kv * each, self.kv * each], -1)
        q, k, v = heads_of(q, self.heads), heads_of(k, self.kv), heads_of(v, self.kv)
        if turn is not None:
            q, k = rotated(q, turn), rotated(k, turn)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=self.kv != self.heads)
        return self.out(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def rotated(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * turn[0] + torch.cat([-b, a], -1) * turn[1]


def angles(length: int, dim: int, theta: float) -> tuple[Tensor, Tensor]:
    speed = theta ** (-torch.arange(0, dim, 2) / dim)
    angle = torch.outer(torch.arange(length), speed).repeat(1, 2)
    return angle.cos(), angle.sin()


class GLU(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, 2 * hidden, bias=False), nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)  # type: ignore[no-any-return]


class Experts(nn.Module):
    """Each expert on its own tokens; how many these are is known late, so that a compiled graph ends here."""

    def __init__(self, dim: int, hidden: int, experts: int, used: int) -> None:
        super().__init__()
        self.used = used
        self.router = nn.Linear(dim, experts, bias=False)
        self.experts = nn.ModuleList(GLU(dim, hidden) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        gates, chosen = self.router(rows).softmax(-1).topk(self.used, -1)
        gates = gates / gates.sum(-1, keepdim=True)
        y = torch.zeros_like(rows)
        for i, expert in enumerate(self.experts):
            token, place = torch.where(chosen == i)
            y = y.index_add(0, token, expert(rows[token]) * gates[token, place, None])
        return y.view_as(x)


class Layer(nn.Module):
    def __init__(self, norm: Callable[[], nn.Module], attention: Attention, feed: nn.Module) -> None:
        super().__init__()
        self.norm_1, self.norm_2, self.attention, self.feed = norm(), norm(), attention, feed

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = x + self.attention(self.norm_1(x), turn)
        return x + self.feed(self.norm_2(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Llama, or Mixtral where the sizes name experts."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        d = model.dims
        routed = "EXPERTS" in d
        self.embed = nn.Embedding(d["V"], d["D"])
        self.layers = nn.ModuleList(
            Layer(
                lambda: nn.RMSNorm(d["D"], eps=1e-5), Attention(d["D"], d["H"], d["K"], False, True),
                Experts(d["D"], d["F"], d["EXPERTS"], d["USED"]) if routed else GLU(d["D"], d["F"]),
            )
            for _ in range(d["L"])
        )  # fmt: skip
        self.norm = nn.RMSNorm(d["D"], eps=1e-5)
        self.head = nn.Linear(d["D"], d["V"], bias=False)
        if not routed:
            self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.02)
        cos, sin = angles(model.length, d["D"] // d["H"], 1e6 if routed else 1e4)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        tokens = inputs["tokens"]
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, (self.cos, self.sin))
        logits = self.head(self.norm(x))[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


class ViT(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        d = model.dims
        self.patches = nn.Conv2d(d["C"], d["D"], d["P"], d["P"])
        self.token = nn.Parameter(torch.zeros(1, 1, d["D"]))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (d["Y"] // d["P"]) ** 2 + 1, d["D"]))
        self.layers = nn.ModuleList(
            Layer(lambda: nn.LayerNorm(d["D"], eps=1e-12), Attention(d["D"], d["H"], d["H"], True, False), mlp(d["D"]))
            for _ in range(d["L"])
        )
        self.norm, self.head = nn.LayerNorm(d["D"], eps=1e-12), nn.Linear(d["D"], d["CLASSES"])

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        x = self.patches(inputs["image"]).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(self.norm(x)[:, 0]).float(), inputs["class"])


def mlp(dim: int, approximate: str = "none") -> nn.Module:
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(approximate), nn.Linear(4 * dim, dim))


class DiTLayer(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.mod = nn.Linear(dim, 6 * dim)
        self.attention, self.feed = Attention(dim, heads, heads, True, False), mlp(dim, "tanh")

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.mod(F.silu(cond))[:, None].chunk(6, -1)
        x = x + gate_1 * self.attention(normed(x) * (1 + scale_1) + shift_1)
        return x + gate_2 * self.feed(normed(x) * (1 + scale_2) + shift_2)  # type: ignore[no-any-return]


def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class DiT(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        d = model.dims
        self.channels, self.side = d["C"], d["Y"] // d["P"]
        self.patches = nn.Conv2d(d["C"], d["D"], d["P"], d["P"])
        self.register_buffer("positions", torch.randn(1, self.side**2, d["D"]))
        self.time = nn.Sequential(nn.Linear(256, d["D"]), nn.SiLU(), nn.Linear(d["D"], d["D"]))
        self.classes = nn.Embedding(d["CLASSES"] + 1, d["D"])
        self.layers = nn.ModuleList(DiTLayer(d["D"], d["H"]) for _ in range(d["L"]))
        self.mod, self.head = nn.Linear(d["D"], 2 * d["D"]), nn.Linear(d["D"], d["P"] ** 2 * 2 * d["C"])

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        angle = inputs["t"].float()[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)
        cond = self.time(torch.cat([angle.cos(), angle.sin()], -1)) + self.classes(inputs["class"])
        x = self.patches(inputs["x_t"]).flatten(2).transpose(1, 2) + self.positions
        for layer in self.layers:
            x = layer(x, cond)
        shift, scale = self.mod(F.silu(cond))[:, None].chunk(2, -1)
        y = self.head(normed(x) * (1 + scale) + shift).unflatten(-1, (-1, 2 * self.channels))
        y = y.unflatten(1, (self.side, self.side)).unflatten(3, (2, 2))  # [B y x p q c]
        out = y.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return F.mse_loss(out[:, : self.channels], inputs["noise"])


MAKERS: Mapping[str, Callable[[Model], nn.Module]] = {"llama": Decoder, "mixtral": Decoder, "vit": ViT, "dit": DiT}
