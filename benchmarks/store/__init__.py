"""Measuring a store's disk tier."""
