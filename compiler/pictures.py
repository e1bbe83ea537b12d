"""Which inputs a model may have for pictures, in which dims, and what is wrong with those that it has."""

from __future__ import annotations

from collections.abc import Iterator

from specc.compiler.passes.prune import prune
from specc.compiler.program import Program
from specc.compiler.types import TensorType
from specc.compiler.vocabulary import classes
from specc.spec.errors import Diagnostic, did_you_mean
from specc.spec.spec import Spec
from specc.spec.stage import CAPTION, OF_IMAGES, StageSpec

CODE = "S320"
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
LIKE_IMAGES = {"images": ("image",), "denoising": ("image", "x_t", "noise", "target")}
OF_SAMPLES = {"images": ("class", "key"), "denoising": ("class", "key", "t")}  # one number of each sample
FLOATS = ("image", "x_t", "noise", "target", "t")


def fields_of(stage: StageSpec) -> set[str]:
    """The inputs that a model may have for the stage's pictures."""
    return {"noise", *LIKE_IMAGES[stage.objective], *OF_SAMPLES[stage.objective], *CAPTION}


def picture_mistakes(spec: Spec, name: str, program: Program) -> Iterator[Diagnostic]:
    """Inputs that pictures do not fill, or in other dims."""
    stage, (_, _, section) = spec.stages[name], spec.model_section(spec.stages[name].model)
    inputs = prune(program, []).inputs
    given, like = fields_of(stage), [n for n in LIKE_IMAGES[stage.objective] if n in inputs]
    for field, t in inputs.items():
        told, hint = "", ""
        if field not in given:
            told, hint = f"no field of '{stage.objective}' is called '{field}'", did_you_mean(field, given)
        elif wrong := _wrong(field, t, stage):
            told = f"'{field}' is {t.shown()} in the model, and {wrong} in the stage's data"
        elif field in like and _shape(t) != _shape(inputs[like[0]]):
            told = f"'{field}' is {t.shown()}, and '{like[0]}' {inputs[like[0]].shown()}: both are the image"
        if told:
            mark = spec.mark((*section, "inputs", field)) or spec.mark((*section, "attributes", field))
            yield Diagnostic(CODE, f"'{name}': {told}", mark or spec.mark(("stages", name)), hint)
    if not like:
        mark = spec.mark(("stages", name, "objective"))
        text = f"'{name}': the model takes no images; '{stage.objective}' is for inputs {', '.join(sorted(given))}"
        yield Diagnostic(CODE, text, mark)
    elif not _wrong(like[0], inputs[like[0]], stage):
        yield from _setting_mistakes(spec, name, inputs[like[0]], classes(prune(program, [])))


def _setting_mistakes(spec: Spec, name: str, t: TensorType, known: dict[str, int]) -> Iterator[Diagnostic]:
    """Means of other channels than the image has; classes that are dropped, and no table to have none."""
    stage = spec.stages[name]
    try:
        stage.pictures.per_channel(image_size(_shape(t), stage)[0])
    except ValueError as e:
        yield Diagnostic(CODE, f"'{name}': {e}", spec.mark(("stages", name, "data", "image")))
    takes = {"tokens", "class"} & {*spec.model_section(stage.model)[1].inputs}
    if stage.denoising and stage.denoising.drop and ("table" not in known if "class" in takes else not takes):
        text = f"'{name}': 'drop' leaves out classes by the last row of their table, or captions; the model has neither"
        yield Diagnostic(CODE, text, spec.mark(("stages", name, "denoising", "drop")))


def image_size(shape: tuple[int, ...], stage: StageSpec) -> tuple[int, int, int]:
    """Channels, height and width of images [C H W] or [H W C], as `data.image.layout` says."""
    a, b, c = shape
    return (c, a, b) if stage.pictures.layout == "hwc" else (a, b, c)


def _shape(t: TensorType) -> tuple[int, ...]:
    """Of one sample; 0 for dims of no known size."""
    return tuple(d.size or 0 for d in t.dims[1:])


def _wrong(field: str, t: TensorType, stage: StageSpec) -> str:
    """What the data have in another form; nothing if it is right."""
    words = {"chw": "C Y X", "hwc": "Y X C"}[stage.pictures.layout]
    dtype = "float" if field in FLOATS else "int"
    rest = t.dims[1:]
    if field in OF_SAMPLES[stage.objective]:
        good, text = not rest, "B"
    elif field in LIKE_IMAGES[stage.objective]:
        known = len(rest) == 3 and all(d.size for d in rest)
        good = known and image_size(_shape(t), stage)[0] in CHANNELS
        text = f"B {words}, of known sizes, with 1, 3 or 4 channels"
    elif field == "noise":
        good, text = bool(rest) and all(d.size for d in rest), "B ..., of known sizes"
    else:
        good, text = len(rest) == 1, "B S"
    open_first = bool(t.dims) and t.dims[0].size is None
    shown = f"{dtype}[{text.partition(',')[0]}]{''.join(text.partition(',')[1:])}"
    return "" if good and open_first and t.dtype == dtype else shown


assert set(LIKE_IMAGES) == set(OF_SAMPLES) == set(OF_IMAGES)
