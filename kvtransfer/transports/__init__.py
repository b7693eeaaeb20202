"""The roads that blocks travel: in-process, shm, zmq, and the optional ucx and nixl."""
