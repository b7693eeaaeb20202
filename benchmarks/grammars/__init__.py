"""What answers that keep to grammars cost, and whom."""
