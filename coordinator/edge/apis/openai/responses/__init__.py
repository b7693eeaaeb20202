"""OpenAI's responses: items in, items out, and a window of those that can be gone on with."""
