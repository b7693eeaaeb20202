"""One folder a dialect: what clients send and get."""
