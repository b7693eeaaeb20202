"""Ollama's dialect: chats, generations and what it tells of its models."""
