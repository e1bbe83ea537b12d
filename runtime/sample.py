"""Write text with a trained model, a token at a time over caches of keys and values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from specc.compiler.graphs import from_json
from specc.runtime.built import Stage
from specc.runtime.data.chat import coder
from specc.runtime.data.files import well_formed
from specc.runtime.data.template import render
from specc.runtime.data.tokenizer import END, end_id
from specc.runtime.errors import RunError

GREEDY = 1e-6  # temperatures below are as good as 0: logits over them leave the range of fp32


@dataclass
class Decoder:
    """The decoding graphs of a stage and the state of one text."""

    stage: Stage
    params: Mapping[str, Tensor]
    wiring: dict[str, Any] = field(init=False)
    graphs: dict[tuple[str, int], Any] = field(default_factory=dict)
    caches: dict[int, list[Tensor]] = field(default_factory=dict)
    length: int = 0

    def __post_init__(self) -> None:
        path = self.stage.path / "decode" / "calls.json"
        if not path.is_file():
            raise RunError(f"'{self.stage.name}' cannot decode: {self.stage.refusal}")
        self.wiring = json.loads(path.read_text())
        for name in self.wiring["bodies"]:
            for width in self.wiring["widths"]:
                text = (self.stage.path / "decode" / f"{name}.{width}.json").read_text()
                self.graphs[name, width] = from_json(text, self.device)
        self.params = {n: p.to(self.stage.compute) for n, p in self.params.items()}

    @property
    def device(self) -> torch.device:
        return next(iter(self.params.values())).device

    @property
    def room(self) -> int:
        return int(self.wiring["capacity"]) - self.length

    @torch.no_grad()
    def feed(self, tokens: list[int]) -> Tensor:
        """Decode the tokens; the logits [V] behind the last one."""
        logits = torch.empty(0)
        widths: list[int] = self.wiring["widths"]
        while tokens:
            width = max(widths) if len(tokens) > 1 and self.room >= max(widths) else min(widths)
            taken, tokens = tokens[:width], tokens[width:]
            logits = self._run(taken, width)
        return logits

    def _run(self, tokens: list[int], width: int) -> Tensor:
        start, n = self.length, len(tokens)
        at = torch.arange(start, start + width, device=self.device)[None]
        given = {"tokens": torch.tensor([tokens + [0] * (width - n)], device=self.device), "pos": at}
        values = {name: given.get(name, torch.zeros_like(at)) for name in self.wiring["inputs"]}
        everything = torch.arange(int(self.wiring["capacity"]), device=self.device)[None]
        scalars = [torch.tensor(start, device=self.device), torch.tensor(start + n, device=self.device)]
        for i, call in enumerate(self.wiring["calls"]):
            body = self.wiring["bodies"][call["body"]]
            keys = [everything if call["ins"][k] == "pos" else torch.zeros_like(everything) for k in body["keys"]]
            caches = self.caches.get(i) or [
                torch.zeros(s, dtype=self.stage.compute, device=self.device) for s in body["caches"]
            ]
            results = self.graphs[call["body"], width](
                *(values[v] for v in call["ins"]), *(self.params[p] for p in call["params"]), *scalars, *keys, *caches
            )
            values |= zip(call["outs"], results[: len(call["outs"])], strict=True)
            self.caches[i] = list(results[len(call["outs"]) :])
        self.length += n
        logits: Tensor = values[self.wiring["logits"]][0, n - 1].float().cpu()
        return logits


@dataclass(frozen=True)
class Choice:
    """How the next token is drawn."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


def draw(logits: Tensor, choice: Choice, generator: torch.Generator) -> int:
    if choice.temperature < GREEDY:
        return int(logits.argmax())
    p = torch.softmax(logits / choice.temperature, -1)
    if choice.top_k:
        p = torch.where(p >= p.topk(min(choice.top_k, len(p))).values[-1], p, 0.0)
    if choice.top_p < 1:
        ordered, index = p.sort(descending=True)
        p = p.index_fill(0, index[ordered.cumsum(0) - ordered > choice.top_p], 0.0)
    return int(torch.multinomial(p, 1, generator=generator))


def write_text(
    stage: Stage, params: Mapping[str, Tensor], tokenizer: Tokenizer, prompt: str, tokens: int, choice: Choice,
    raw: bool = False,
) -> str:  # fmt: skip
    """What the model writes behind the prompt, to an end token or the model's length.

    The prompt of a stage of chats (sft, preference) goes in its template, up to the answer, unless it is `raw`."""
    text = well_formed(prompt)
    if stage.spec.has_chats and not raw:
        by = coder(tokenizer)
        ids = by.encode(render(stage.spec.template, [{"role": "user", "content": by.hide(text)}], ask=True))
    else:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    ids = ids or [end_id(tokenizer)]
    decoder = Decoder(stage, params)
    if len(ids) >= decoder.room:
        raise RunError(f"the prompt has {len(ids)} tokens, the model holds {decoder.room}")
    generator = torch.Generator().manual_seed(choice.seed)
    ends = {end_id(tokenizer), tokenizer.token_to_id(END)}
    logits, written = decoder.feed(ids), list[int]()
    while len(written) < tokens and decoder.room > 0:
        token = draw(logits, choice, generator)
        if token in ends:
            break
        written.append(token)
        if len(written) < tokens and decoder.room > 0:
            logits = decoder.feed([token])
    return str(tokenizer.decode(written))
