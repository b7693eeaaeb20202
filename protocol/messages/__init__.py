"""Every message between processes, one file a direction. Torch-free."""
