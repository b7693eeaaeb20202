"""What a host offers: cores, memory, GPUs, models on disk."""
