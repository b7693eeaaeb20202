"""Anthropic's dialect: messages, their tokens, and model cards."""
