"""Equivalence of a mesh of processes with one process: models under plans, a few optimizer steps."""
