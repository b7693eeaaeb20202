"""Model, paged KV cache and sampling, shared by both kinds of worker."""
