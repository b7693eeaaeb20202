"""Baton beside other servers and clients, in the same run."""
