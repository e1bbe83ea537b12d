"""Generated Triton kernels: regions of row-wise work cut from a body, written as one readable file each, and gated."""
