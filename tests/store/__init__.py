"""A block log under faults: disks that break, crash or forget, and files that somebody changed."""
