"""Requests that may be answered elsewhere: asked in another server's dialect, heard as neutral deltas."""
