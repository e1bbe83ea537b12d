"""A whole spec: models, plan and stages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, PrivateAttr, model_validator

from specc.spec.dump import dump
from specc.spec.errors import Diagnostic, Mark, SpecError, did_you_mean, in_order
from specc.spec.loader import Document, KeyPath, attempt, load_document, load_text, put
from specc.spec.model import ModelSpec
from specc.spec.names import name_tables
from specc.spec.node import Node
from specc.spec.plan import PlanSpec
from specc.spec.stage import CAPTION, StageSpec
from specc.spec.use import Sources


class Spec(Node):
    """The top of a spec file."""

    specc: Literal[1]
    name: str = Field("model", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)
    model: ModelSpec | None = None
    models: dict[str, ModelSpec] = {}
    plan: PlanSpec = PlanSpec()
    stages: dict[str, StageSpec] = {}
    ops: list[str] = Field([], max_length=16, description="Python files with ops of your own, beside the spec")
    _document: Document | None = PrivateAttr(None)
    _folder: Path = PrivateAttr(Path("."))

    @model_validator(mode="after")
    def _some_model(self) -> Spec:
        if self.model is None and not self.models:
            raise ValueError("a spec has a 'model' (or several 'models')")
        return self

    def __eq__(self, other: object) -> bool:
        """Equal specs say the same, wherever they were read from."""
        return self.__dict__ == other.__dict__ if isinstance(other, Spec) else NotImplemented

    @property
    def folder(self) -> Path:
        """Where the spec's file lies, or the working directory."""
        return self._folder

    def mark(self, path: KeyPath) -> Mark | None:
        """Where a value of the spec stands, if it came from a file."""
        return self._document.mark(path) if self._document else None

    def model_section(self, name: str | None = None) -> tuple[str, ModelSpec, KeyPath]:
        """A model by name (default: the only one), with its path."""
        if name is None or (name == self.name and self.model is not None):
            if self.model is not None:
                return self.name, self.model, ("model",)
            name = next(iter(self.models))
        if name not in self.models:
            raise SpecError(Diagnostic("S301", f"no model is called '{name}'", None, did_you_mean(name, self.models)))
        return name, self.models[name], ("models", name)

    def to_yaml(self) -> str:
        """YAML that loads to an equal spec."""
        data = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return dump({"specc": 1, **data})

    @classmethod
    def from_yaml(cls, text: str, file: str = "<text>") -> Spec:
        """The spec of a text; the files that it uses lie in the working directory."""
        root = Path.cwd().resolve()
        return _typed(Sources(root).resolve(load_text(text, file), root), file)

    def changed(self, *overrides: str) -> Spec:
        """The spec with values put in by path: `spec.changed("model.dims.L=4")`."""
        return _changed(self, overrides)


def _changed(spec: Spec, overrides: Sequence[str]) -> Spec:
    document = load_text(spec.to_yaml(), spec.name)
    for text in overrides:
        key, eq, value = text.partition("=")
        if not eq:
            raise SpecError(Diagnostic("S006", f"a change reads PATH=VALUE, got '{text}'"))
        put(document, key, load_text(value or "null", key).data, Mark(key, 1, 1, len(text), text))
    changed = _typed(document, spec.name)
    changed._folder = spec.folder
    return changed


def library_model(name: str, **dims: int | str | list[int | str]) -> ModelSpec:
    """A model of the library with other dims: `library_model("llama", D=256, L=4)`."""
    model = Spec.from_yaml(dump({"specc": 1, "use": f"models/{name}"})).model_section()[1]
    for dim in dims:
        if dim not in model.dims:
            hint = did_you_mean(dim, model.dims)
            raise SpecError(Diagnostic("S111", f"the model '{name}' has no dim '{dim}'", hint=hint))
    return model.model_copy(update={"dims": {**model.dims, **dims}})


def load(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Load and validate a spec file; raises SpecError with every mistake at its place."""
    spec = _typed(load_document(Path(path), overrides), str(path))
    spec._folder = Path(path).parent
    return spec


def examine(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Spec | None, list[Diagnostic]]:
    """A spec file and the mistakes of its form; with mistakes the spec is what is left without them, or None."""
    spec, mistakes = _examined(load_document(Path(path), overrides), str(path))
    if spec is not None:
        spec._folder = Path(path).parent
    return spec, mistakes


def _typed(document: Document, file: str) -> Spec:
    spec, mistakes = _examined(document, file)
    if mistakes or spec is None:
        raise SpecError(*mistakes)
    return spec


def _examined(document: Document, file: str) -> tuple[Spec | None, list[Diagnostic]]:
    if not isinstance(document.data, dict):
        raise SpecError(Diagnostic("S002", "a spec is a mapping with 'specc: 1' at its top", document.mark(())))
    document.data.setdefault("name", Path(file).stem if Path(file).suffix in (".yaml", ".yml") else "model")
    spec, mistakes = attempt(document, Spec)
    if spec is not None:
        spec._document = document
        mistakes = mistakes or in_order(stage_mistakes(spec))
    return spec, mistakes


def takes_text(spec: Spec, stage: StageSpec) -> bool:
    """Whether a stage's samples have tokens: pictures have them if the model takes captions."""
    models = [spec.model] if spec.model is not None and stage.model in (None, spec.name) else []
    models += [m for name, m in spec.models.items() if name == (stage.model or next(iter(spec.models)))]
    return not stage.of_images or any({*m.inputs, *m.attributes} & {*CAPTION} for m in models[:1])


def _knows(spec: Spec, stage: StageSpec) -> bool:
    """Whether a stage starts from another one that has a tokenizer, or that no one knows."""
    seen: set[str] = set()
    while stage.from_ is not None and stage.from_ not in seen:
        if stage.from_ not in spec.stages:
            return True
        seen.add(stage.from_)
        stage = spec.stages[stage.from_]
        if stage.tokenizer is not None:
            return True
    return not stage.of_images and bool(seen)


def _words(spec: Spec, name: str) -> object:
    """Where the tokens of a stage come from: the file of a tokenizer, or the stage that trains one."""
    stage = spec.stages[name]
    if stage.tokenizer is not None or stage.from_ not in spec.stages or stage.from_ == name:
        return stage.tokenizer.file if stage.tokenizer and stage.tokenizer.file else (name,)
    earlier = list(spec.stages)[: list(spec.stages).index(name)]
    return _words(spec, stage.from_) if stage.from_ in earlier else (name,)


def stage_mistakes(spec: Spec) -> list[Diagnostic]:
    """`model:` names a model, `from:` an earlier stage, `weights.names:` a table; the first stage of a chain has a
    tokenizer."""
    found: list[Diagnostic] = []
    for i, (name, stage) in enumerate(spec.stages.items()):
        earlier = list(spec.stages)[:i]
        at: KeyPath = ("stages", name)
        if stage.from_ is not None and stage.from_ not in earlier:
            hint = did_you_mean(stage.from_, earlier) or "a stage comes after the one that it starts from"
            found.append(
                Diagnostic("S302", f"no earlier stage is called '{stage.from_}'", spec.mark((*at, "from")), hint)
            )
        elif stage.tokenizer is not None and not stage.tokenizer.file and _knows(spec, stage):
            text = f"'{name}' starts from weights that know the tokens of '{stage.from_}'"
            hint = "remove 'tokenizer': the other stage's is taken"
            found.append(Diagnostic("S310", text, spec.mark((*at, "tokenizer")), hint))
        if stage.tokenizer is None and takes_text(spec, stage) and not _knows(spec, stage):
            found.append(Diagnostic("S303", f"the stage '{name}' has no tokenizer", spec.mark(at), "add 'tokenizer:'"))
        reference = stage.asked.reference if stage.asked else None
        if reference is not None and reference not in earlier:
            mark = spec.mark((*at, "preference", "reference"))
            hint = did_you_mean(reference, earlier) or "a stage comes after the one that it is compared with"
            found.append(Diagnostic("S302", f"no earlier stage is called '{reference}'", mark, hint))
        elif reference is not None and _words(spec, name) != _words(spec, reference):
            text = f"'{name}' is compared with '{reference}', which knows the tokens of another tokenizer"
            found.append(Diagnostic("S310", text, spec.mark((*at, "preference", "reference"))))
        table = stage.weights.names if stage.weights else None
        if table is not None and table not in (known := name_tables()):
            mark = spec.mark((*at, "weights", "names"))
            found.append(Diagnostic("S001", f"there is no name table '{table}'", mark, did_you_mean(table, known)))
        models = [spec.name, *spec.models] if spec.model is not None else list(spec.models)
        if stage.model is not None and stage.model not in models:
            hint = did_you_mean(stage.model, models)
            found.append(Diagnostic("S301", f"no model is called '{stage.model}'", spec.mark((*at, "model")), hint))
    return found
