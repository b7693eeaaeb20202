"""Reading blocks off the engine's loop."""
