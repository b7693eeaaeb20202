"""What each process does when it starts."""
