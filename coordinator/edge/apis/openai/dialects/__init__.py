"""Neutral answers in the bytes of chats and completions."""
