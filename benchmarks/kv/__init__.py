"""How fast KV blocks move between two processes."""
