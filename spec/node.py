"""The pydantic class that every part of a spec is: frozen, and unknown keys are errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


class Node(BaseModel):
    """A frozen part of a spec that forbids unknown keys, infinities and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_number(cls, value: object, info: ValidationInfo) -> object:
        """`true` is not 1."""
        found = next(_booleans(value), None)
        if found is not None and not _takes_bool(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError(f"'{str(found).lower()}' is neither a number nor a word here")
        return value


def _booleans(value: object) -> Iterator[bool]:
    """Those in a value, also in mappings and lists."""
    if isinstance(value, bool):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _booleans(part)


def _takes_bool(annotation: Any) -> bool:
    """Whether a field may hold one, or parts that look after themselves."""
    is_node = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation in (bool, Any) or is_node or any(map(_takes_bool, get_args(annotation)))
