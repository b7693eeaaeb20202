"""The HTTP application: who may ask, how much, and how errors are told."""
