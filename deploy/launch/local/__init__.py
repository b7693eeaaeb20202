"""On this machine: one supervised process tree."""
