"""From a spec to a Program: every name resolved, every value typed. Needs no torch."""

from specc.compiler.elaborate.model import elaborate, elaborate_model, elaborate_stage, sizes_of

__all__ = ["elaborate", "elaborate_model", "elaborate_stage", "sizes_of"]
