"""Execution: data, stages, checkpoints and the command line."""
