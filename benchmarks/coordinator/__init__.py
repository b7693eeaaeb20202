"""What the coordinator costs."""
