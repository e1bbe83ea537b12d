"""The `data:` and `tokenizer:` sections of a stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from specc.spec.image import ImageSpec
from specc.spec.node import Node

Corpus = Literal["python-stdlib", "python-docstrings", "python-docstring-pairs"]


Format = Literal["text", "jsonl", "parquet", "arrow", "image", "tar"]


class Source(Node):
    """Documents of one origin: files, or a corpus that every machine has."""

    corpus: Corpus | None = None
    path: str | None = Field(None, min_length=1, description="a file, a directory, a pattern such as 'news/*.txt', or "
                             "what `Dataset.save_to_disk` of Hugging Face's datasets wrote")  # fmt: skip
    format: Format | None = Field(None, description="default: by the files' endings")
    field: str = Field("text", description="where rows of jsonl, parquet and arrow have their text")
    image: str | None = Field(None, description="where rows have their picture: bytes, {bytes, path} or a path from "
                              "the file's folder; default: 'image' or 'file_name'")  # fmt: skip
    label: str | None = Field(None, description="where rows have their class, a number or a name; default: 'label'")
    weight: float = Field(1.0, gt=0, le=1e6, description="share of the sequences, relative to the other sources")

    @model_validator(mode="after")
    def _one_origin(self) -> Source:
        if (self.corpus is None) == (self.path is None):
            raise ValueError("a source has either 'corpus' or 'path'")
        return self


class DataSpec(Node):
    """Where documents come from and how they become sequences."""

    sources: list[Source] = Field(min_length=1)
    seq_len: int = Field(256, ge=2, le=1 << 20)
    validation: float = Field(0.01, gt=0, lt=1, description="share of the documents held out")
    held_out: list[Source] = Field([], description="sources for validation alone, instead of a share of the others")
    limit: int | None = Field(None, ge=1, description="use only so many documents of each source")
    image: ImageSpec | None = Field(None, description="how pictures become tensors")

    @property
    def shares(self) -> list[tuple[Source, float]]:
        """All sources, with the share of each that is held out."""
        trained = 0.0 if self.held_out else self.validation
        return [*((s, trained) for s in self.sources), *((s, 1.0) for s in self.held_out)]


class TokenizerSpec(Node):
    """Train a byte-level BPE on the stage's documents, or load a tokenizer.json."""

    vocab: int = Field(8192, ge=300, le=1 << 20)
    file: str | None = None
    documents: int = Field(2000, ge=1, description="how many documents it is trained on")
