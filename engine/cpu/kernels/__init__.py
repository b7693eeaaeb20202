"""C kernels, compiled on first use and cached; without a compiler the torch paths serve."""
