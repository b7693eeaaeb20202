"""The reference backend: plain torch, any device, obviously right."""
