"""Checks of generated kernels: in Triton's interpreter, and compiled for GPUs that are not here."""
