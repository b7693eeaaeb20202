"""Turns prompts into KV blocks: the prefill scheduler and the role that serves it."""
