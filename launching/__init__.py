"""Who should run: what every launcher has in common, whatever starts its processes."""
