"""Proven KV blocks on a disk, by content key. Knows neither networks nor the engine: who asks brings the bytes."""
