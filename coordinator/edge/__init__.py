"""HTTP and text: from a client's bytes to token ids and back."""
