"""The bottom layer: ids, messages, errors and the clock. Torch-free, imports nothing of Baton."""
