"""LoRA adapters: reading what PEFT wrote, keeping it by its content, and what of it is in memory. Torch-free."""
