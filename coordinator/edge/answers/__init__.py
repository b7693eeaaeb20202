"""What became of a request, in nobody's dialect."""
