"""Cached blocks of one worker read by another."""
