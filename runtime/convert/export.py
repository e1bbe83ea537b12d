"""A trained stage as a folder in Hugging Face's layout: model.safetensors, config.json, tokenizer.json."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from specc.compiler.elaborate import elaborate, sizes_of
from specc.compiler.passes.prune import prune
from specc.runtime.adapters import factors_of, merged
from specc.runtime.built import Build, Stage
from specc.runtime.convert.adapter import CONFIG as ADAPTER_CONFIG
from specc.runtime.convert.adapter import TENSORS as ADAPTER
from specc.runtime.convert.adapter import peft_adapter
from specc.runtime.convert.config import CONFIG, INDEX, TENSORS, TOKENIZER, TOKENIZER_CONFIG, read_json
from specc.runtime.convert.names import Link, links, to_checkpoint
from specc.runtime.convert.start import difference, told
from specc.runtime.data import tokenizer as tokenizers
from specc.runtime.data.tokenizer import END, EOS, PAD
from specc.runtime.errors import RunError
from specc.runtime.tensorfile import bytes_of, write_tensors
from specc.runtime.train import ORIGIN, stage_folder
from specc.spec.configs import made_configs
from specc.spec.errors import SpecError
from specc.spec.names import NameTable, load_names, name_tables
from specc.spec.spec import Spec, load
from specc.spec.use import library

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHARD = "model-{:05d}-of-{:05d}.safetensors"
SHARD_BYTES = 5 * 10**9
METADATA = {"format": "pt"}
INIT = re.compile(r" \([^()]*\)$", re.MULTILINE)  # of a parameter, in a program's text


@dataclass(frozen=True)
class Form:
    """How a stage's weights are written: the table that names them, and the config that says the model's sizes."""

    table: NameTable
    links: Sequence[Link]
    config: Mapping[str, Any]
    tokenizer: Tokenizer


def write_folder(
    build: Build, stage: Stage, weights: Mapping[str, Tensor], out: Path, dtype: str, names: str | None,
    shard_bytes: int = SHARD_BYTES, adapter: bool = False,
) -> None:  # fmt: skip
    """Write the folder, which appears whole; raises RunError if there is something in its place.

    With `adapter` it has the stage's adapters alone, as PEFT writes them."""
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out} exists; name another folder, or remove it")
    if stage.spec.of_images:
        raise RunError(f"'{stage.name}' was trained on images; models of texts alone are exported")
    form = form_of(build, stage, names)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        work = Path(temporary) / out.name
        work.mkdir()
        if adapter:
            fill_adapter(work, build, stage, weights, form, dtype)
        else:
            fill(work, build, stage, weights, form, dtype, shard_bytes)
        shutil.copyfile(stage_folder(build, stage) / TOKENIZER, work / TOKENIZER)
        write_json(work / TOKENIZER_CONFIG, tokenizer_config(stage, form.tokenizer))
        if out.exists():
            out.rmdir()
        work.rename(out)


def fill(
    work: Path, build: Build, stage: Stage, weights: Mapping[str, Tensor], form: Form, dtype: str, shard_bytes: int
) -> None:  # fmt: skip
    """Write the weights and the config."""
    named = to_checkpoint(form.links, merged(weights, stage.adapters, stage.shapes()))
    write_shards(work, {name: narrowed(name, t, DTYPES[dtype]) for name, t in named.items()}, shard_bytes)
    # `torch_dtype` is what readers of all ages understand
    written = {"torch_dtype": str(DTYPES[dtype]).removeprefix("torch.")}
    write_json(work / CONFIG, {k: v for k, v in form.config.items() if k != "dtype"} | written)


def fill_adapter(
    work: Path, build: Build, stage: Stage, weights: Mapping[str, Tensor], form: Form, dtype: str
) -> None:  # fmt: skip
    """Write the adapters; raises RunError if the stage has none, or trains more than these."""
    lora = load(build.path / "spec.yaml").model_section(stage.spec.model)[1].lora
    if lora is None:
        raise RunError(f"the model of '{stage.name}' has no adapters ('lora:')")
    if more := sorted(set(stage.trainable()) - factors_of(stage.adapters)):
        raise RunError(f"'{stage.name}' trains '{more[0]}' beside its adapters: export merged weights")
    tensors, config = peft_adapter(stage.adapters, lora, form.links, weights, published_base(build, stage))
    write_tensors(work / ADAPTER, {name: narrowed(name, t, DTYPES[dtype]) for name, t in tensors.items()}, METADATA)
    write_json(work / ADAPTER_CONFIG, config)


def published_base(build: Build, stage: Stage) -> str | None:
    """The checkpoint whose weights the stage's adapters stand beside, if no stage before has changed them."""
    if stage.spec.from_ is None:
        return stage.spec.weights.path if stage.spec.weights else None
    parent = build.stages[stage.spec.from_]
    own = factors_of(stage.adapters)
    changed = set(parent.trainable()) | factors_of(parent.adapters)
    return published_base(build, parent) if changed <= own else None


def narrowed(name: str, t: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in another dtype; raises RunError if that does not hold its numbers."""
    made = t.to(dtype)
    if bool(t.isfinite().all()) and not bool(made.isfinite().all()):
        raise RunError(f"'{name}' has numbers that are too large for {str(dtype).removeprefix('torch.')}")
    return made


def write_shards(folder: Path, tensors: Mapping[str, Tensor], shard_bytes: int) -> None:
    """One file, or several with an index where it would be longer than `shard_bytes`."""
    shards: list[dict[str, Tensor]] = [{}]
    for name, t in tensors.items():
        if shards[-1] and bytes_of({**shards[-1], name: t}) > shard_bytes:
            shards.append({})
        shards[-1][name] = t
    if len(shards) == 1:
        write_tensors(folder / TENSORS, tensors, METADATA)
        return
    where: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        file = SHARD.format(i, len(shards))
        write_tensors(folder / file, shard, METADATA)
        where |= dict.fromkeys(shard, file)
    write_json(folder / INDEX, {"metadata": {"total_size": bytes_of(tensors)}, "weight_map": where})


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def form_of(build: Build, stage: Stage, names: str | None) -> Form:
    """The table and the config: those of the checkpoint that the stage goes back to, or made of its model."""
    spec, kept = load(build.path / "spec.yaml"), origin_folder(build, stage)
    tokenizer = tokenizers.load(stage_folder(build, stage) / TOKENIZER)
    if kept is not None:
        config, name = read_json(kept / CONFIG), names or str(read_json(kept / ORIGIN)["names"])
        table = load_names(name)
        if stage.spec.has_chats:  # an answer's end ends what is written, too
            known = config.get("eos_token_id")
            stops = [*(known if isinstance(known, list) else [known]), *_ids(stage, tokenizer)]
            config["eos_token_id"] = [i for i in dict.fromkeys(stops) if i is not None]
    else:
        name = names or table_of(spec, stage)
        table = load_names(name)
        made = made_config(spec, stage, name, table)
        config = {**made, **ends(stage, tokenizer)}
    if names is None and (why := otherwise(spec, stage, table, config)):
        hint = f"with --names {name} it is written all the same"
        raise RunError(f"'{stage.name}': {why}, so that transformers would compute something else; {hint}")
    return Form(table, exported(table, config, stage), config, tokenizer)


def origin_folder(build: Build, stage: Stage) -> Path | None:
    """The run of the stage, or of the one that it goes back to, that has the config of a published checkpoint."""
    folder = stage_folder(build, stage)
    if (folder / CONFIG).is_file() and (folder / ORIGIN).is_file():
        return folder
    return None if stage.spec.from_ is None else origin_folder(build, build.stages[stage.spec.from_])


def exported(table: NameTable, config: Mapping[str, Any], stage: Stage) -> list[Link]:
    """The links that write every parameter once: the first that a table has for it. Raises RunError if one has none."""
    left_out = {*table.initial, *factors_of(stage.adapters)}
    shapes = {path: tuple(shape) for path, shape in stage.shapes().items() if path not in left_out}
    found: list[Link] = []
    done: set[str] = set()
    for link in links(table.rules(config), shapes):
        if not set(link.ours) <= done:
            found.append(link)
            done |= set(link.ours)
    if missing := [p for p in shapes if p not in done]:
        raise RunError(f"'{stage.name}': the table for '{table.model}' has no name for '{missing[0]}'")
    return found


def table_of(spec: Spec, stage: Stage) -> str:
    """The one table that names all parameters of the stage and says how its configs are made."""
    fits = [n for n in name_tables() if _names_all(load_names(n), spec, stage)]
    fits = [n for n in fits if n == load_names(n).model] or fits  # others are families with the same tensors
    if len(fits) != 1:
        known = ", ".join(n for n in name_tables() if load_names(n).config)
        raise RunError(f"'{stage.name}': no name table is known to be its model's; say one with --names ({known})")
    return fits[0]


def _names_all(table: NameTable, spec: Spec, stage: Stage) -> bool:
    if not table.config:
        return False
    try:
        return any(_fits(table, config, stage) for config in _made(table, spec, stage))
    except SpecError:
        return False


def _fits(table: NameTable, config: Mapping[str, Any], stage: Stage) -> bool:
    try:
        return bool(exported(table, config, stage))
    except RunError:
        return False


def _made(table: NameTable, spec: Spec, stage: Stage) -> list[dict[str, Any]]:
    """Configs that the stage's model may have."""
    _, section, _ = spec.model_section(stage.spec.model)
    sizes = {**sizes_of(section), **section.numbers}
    return list(made_configs(table, sizes, stage.spec.data.seq_len))


def made_config(spec: Spec, stage: Stage, name: str, table: NameTable) -> dict[str, Any]:
    """The config of the stage's model: of those that may be, the one that gives back the model."""
    if not table.config:
        raise RunError(f"the name table '{name}' does not say what a config of its own has (no 'config:')")
    why = ""
    for config in _made(table, spec, stage):
        try:
            found = difference(spec, stage.spec.model, table.overrides(config))
        except SpecError as e:
            found = told(e)
        if not found:
            return config
        why = found
    raise RunError(f"'{stage.name}': no config of '{table.model}' says its model: {why}")


def otherwise(spec: Spec, stage: Stage, table: NameTable, config: Mapping[str, Any]) -> str:
    """Why the stage's model computes other logits than the published one of these sizes; nothing if it does not."""
    published = load(Path(str(library("models")[table.model])), table.overrides(config))
    pairs = [(spec, stage.spec.model), (published, None)]
    texts = [_computed(s, model, stage.spec.objective) for s, model in pairs]
    own, theirs = (sizes_of(s.model_section(model)[1]) for s, model in pairs)
    if other := [n for n, size in theirs.items() if own.get(n) != size]:
        return f"its dim '{other[0]}' is {own.get(other[0])}, the checkpoint's {theirs[other[0]]}"
    return "" if texts[0] == texts[1] else f"its model is not the library's '{table.model}'"


def _computed(spec: Spec, model: str | None, objective: str) -> str:
    """What the logits are made by, without first values, when adapters are merged."""
    section = ".".join(map(str, spec.model_section(model)[2]))
    plain = spec.changed(f"{section}.lora=null", f"{section}.freeze=[]", f"{section}.train=[]")
    program = prune(elaborate(plain, model, objective), ["logits"], loss=False)
    return INIT.sub("", "\n".join(map(str, [*program.bodies.values(), *program.calls])))


def ends(stage: Stage, tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokens that a config names: a chat ends with the end of an answer too."""
    stops = _ids(stage, tokenizer)
    first = tokenizers.end_id(tokenizer)
    found = {"bos_token_id": first, "eos_token_id": stops if len(stops) > 1 else first}
    return found | {"pad_token_id": tokenizer.token_to_id(PAD)}


def _ids(stage: Stage, tokenizer: Tokenizer) -> list[int]:
    return [i for i in map(tokenizer.token_to_id, _stops(stage, tokenizer)) if i is not None]


def _stops(stage: Stage, tokenizer: Tokenizer) -> list[str]:
    own = [tokenizers.end_of(tokenizer) or EOS]
    return [*own, END] if stage.spec.has_chats and tokenizer.token_to_id(END) is not None else own


def tokenizer_config(stage: Stage, tokenizer: Tokenizer) -> dict[str, Any]:
    """What transformers reads beside tokenizer.json: the special tokens, and the template of chats."""
    stops = _stops(stage, tokenizer)
    special = {"eos_token": stops[-1], "pad_token": PAD}
    found: dict[str, Any] = {k: t for k, t in special.items() if tokenizer.token_to_id(t) is not None}
    if stage.spec.has_chats:
        found["chat_template"] = stage.spec.template
    return {**found, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
