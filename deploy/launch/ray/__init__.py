"""Launching on Ray: it places and restarts; requests, tokens and KV blocks never pass through it."""
