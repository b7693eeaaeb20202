"""A whole cluster in one thread on a virtual clock."""
