"""Turns KV blocks into tokens: the decode scheduler and the role that serves it."""
