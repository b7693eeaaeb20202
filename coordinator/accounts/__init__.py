"""Who may use how much, and what was used: keys, limits, and the ledger of answers."""
