"""The OpenAI edge, admission, routing and the life of every request. Never imports torch."""
