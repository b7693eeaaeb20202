"""Checkpoints of others, read and made ready: Hugging Face directories and GGUF files."""
