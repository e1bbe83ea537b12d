"""The pydantic class that every part of a spec is: frozen, and unknown keys are errors."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Node(BaseModel):
    """A frozen part of a spec that forbids unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
