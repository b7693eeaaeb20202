"""What `python -m benchmarks.gpu` measures on a GPU, a part a module."""
