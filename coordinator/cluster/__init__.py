"""Live requests and workers: admission, routing, recovery, scaling."""
