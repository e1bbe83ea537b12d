"""A scaling sweep written in Python: decoders of several sizes, each trained on tokens in proportion to its parameters.

    python examples/programmatic.py                 # write sweep/d64.yaml, ... and print what each takes
    python examples/programmatic.py --run           # build and train all of them, smallest first

Every spec is plain YAML: `specc check sweep/*.yaml`, `specc build sweep/d64.yaml` work on them as on any other."""

import argparse
from pathlib import Path

import specc

SIZES = {64: 2, 96: 3, 128: 4}  # width: layers
CORPUS = specc.Source(corpus="python-stdlib")


def sized(width: int, layers: int, tokens_per_param: float, vocab: int, limit: int) -> specc.Spec:
    """A Llama of a width and depth, with its data and budget."""
    heads = width // 32
    model = specc.library_model("llama", D=width, L=layers, H=heads, K=heads, F=8 * width // 3, V=vocab)
    params = 2 * vocab * width + layers * (4 * width**2 + 3 * width * (8 * width // 3))
    stage = specc.StageSpec(
        data=specc.DataSpec(sources=[CORPUS], seq_len=128, limit=limit, validation=0.1),
        tokenizer=specc.TokenizerSpec(vocab=vocab, documents=limit),
        optimizer=specc.Optimizer(lr=0.2 / width),  # the wider, the smaller (arXiv:2203.03466)
        schedule=specc.Schedule(kind="wsd", warmup=0.05),
        batch=specc.Batch(sequences=8),
        budget=specc.Budget(tokens=int(tokens_per_param * params)),
        eval=specc.Eval(every=50, batches=4),
    )
    return specc.Spec(specc=1, name=f"d{width}", model=model, stages={"pretrain": stage})


def main() -> None:
    words = argparse.ArgumentParser(description="A scaling sweep.")
    words.add_argument("--out", type=Path, default=Path("sweep"), help="where specs and builds go")
    words.add_argument("--tokens-per-param", type=float, default=1.0)
    words.add_argument("--limit", type=int, default=400, help="documents of the corpus")
    words.add_argument("--run", action="store_true", help="build and train")
    args = words.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for width, layers in SIZES.items():
        spec = sized(width, layers, args.tokens_per_param, vocab=1024, limit=args.limit)
        path = args.out / f"{spec.name}.yaml"
        path.write_text(spec.to_yaml(), encoding="utf-8")
        assert specc.load(path) == spec
        print(f"{path}: {spec.stages['pretrain'].steps()} steps")
        if args.run:
            specc.run(specc.build(spec, args.out / "build" / spec.name))


if __name__ == "__main__":
    main()
