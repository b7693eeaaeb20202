"""The server: bytes of a connection to requests, within limits: heads, bodies, deadlines, descriptors."""
