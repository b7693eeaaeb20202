"""Moving KV blocks between pools, verified after the reader's own read. Knows nothing of text or HTTP."""
