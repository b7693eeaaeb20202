"""Exhaustive exploration of the handoff for small configurations, and of the policies that fail it."""
