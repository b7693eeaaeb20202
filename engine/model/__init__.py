"""The decoder: its weights, its order of operations and one step's work as arrays."""
