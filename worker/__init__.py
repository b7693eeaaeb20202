"""One worker process: its loop, its sockets and what it is made of."""
