"""The processor backend: C kernels and packed matrices."""
