"""Model groups: which deployment answers a request, our own pools or somebody else's server."""
