"""Blocks of KV: who holds them, what is cached in them, and the memory they lie in."""
