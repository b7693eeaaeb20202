"""Measuring Baton and its parts; results lie in benchmarks/results."""
