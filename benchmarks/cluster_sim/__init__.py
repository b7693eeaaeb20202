"""`baton bench cluster`: policies of scaling compared on simulated clusters; the simulation itself is `simulation`."""
