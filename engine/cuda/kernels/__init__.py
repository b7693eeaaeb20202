"""Triton kernels; the only place that imports triton."""
