"""The engine's steps against the machine's limits."""
