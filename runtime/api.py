"""specc from Python: run a build, sample from it and export it, as the commands of these names do; `make` has
building, which imports the compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from specc.runtime import checkpoint
from specc.runtime.built import Build, Stage, open_build
from specc.runtime.convert.export import DTYPES, write_folder
from specc.runtime.data import tokenizer as tokenizers
from specc.runtime.errors import RunError
from specc.runtime.sample import Choice, write_text
from specc.runtime.start import start
from specc.runtime.train import stage_folder
from specc.spec.errors import did_you_mean

BuildLike = Build | str | Path


def run(
    target: BuildLike, stage: str | None = None, say: Callable[[str], None] = print, base: Path | None = None,
    bar: TextIO | None = None,
) -> Build:  # fmt: skip
    """Run the stages of a build, or one of them: what is done is skipped, what is half done goes on.

    `base` is the folder that data paths start from (default: the working directory). A build for several processes
    starts them; they write to standard output."""
    return start(target.path if isinstance(target, Build) else Path(target), stage, say, base, bar)


def sample(
    target: BuildLike, prompts: str | Sequence[str] = (), stage: str | None = None, tokens: int = 64,
    choice: Choice | None = None, raw: bool = False,
) -> list[str]:  # fmt: skip
    """What the model writes behind each prompt (default: the prompts of the stage), with a trained stage's weights.

    `raw` leaves the chat template of a stage of chats (sft, preference) away."""
    opened = target if isinstance(target, Build) else open_build(Path(target))
    source, loaded = trained(opened, stage)
    given = [prompts] if isinstance(prompts, str) else list(prompts or source.spec.sample.prompts or [""])
    return write_behind(opened, source, loaded, given, tokens, choice or Choice(), raw)


def export(
    target: BuildLike, folder: str | Path, stage: str | None = None, dtype: str = "fp32", names: str | None = None,
    adapter: bool = False,
) -> tuple[str, int]:  # fmt: skip
    """Write a trained stage's weights (their moving average, if there is one) as a folder that transformers loads;
    which stage that was, and its step. `names` is a name table, if none or several could be the model's.

    Adapters are merged into the weights; with `adapter` the folder has them alone, as PEFT loads them."""
    if dtype not in DTYPES:
        raise RunError(f"no dtype '{dtype}' is exported: {did_you_mean(dtype, DTYPES)}")
    opened = target if isinstance(target, Build) else open_build(Path(target))
    source, loaded = trained(opened, stage)
    write_folder(opened, source, loaded.best, Path(folder), dtype, names, adapter=adapter)
    return source.name, loaded.step


def write_behind(
    build: Build, stage: Stage, loaded: checkpoint.Loaded, prompts: Sequence[str], tokens: int, choice: Choice,
    raw: bool,
) -> list[str]:  # fmt: skip
    """What a checkpoint's weights write behind each prompt."""
    if stage.spec.of_images:
        raise RunError(f"'{stage.name}' was trained on images, and its model writes no texts")
    params = loaded.best
    tokenizer = tokenizers.load(stage_folder(build, stage) / "tokenizer.json")
    return [write_text(stage, params, tokenizer, prompt, tokens, choice, raw) for prompt in prompts]


def trained(build: Build, name: str | None) -> tuple[Stage, checkpoint.Loaded]:
    """The stage that was asked for, or the last one that has a checkpoint."""
    if name is not None and name not in build.stages:
        raise RunError(f"the build has no stage '{name}': {did_you_mean(name, build.stages)}")
    for stage in reversed(build.stages.values()):
        if name in (None, stage.name):
            loaded = checkpoint.load_newest(stage_folder(build, stage) / "checkpoints", only=("weights", "ema"))
            if loaded:
                return stage, loaded
    raise RunError(f"no checkpoint of {name or 'any stage'} yet; say `specc run {build.path}` first")
