"""How many workers are needed. Pure."""
