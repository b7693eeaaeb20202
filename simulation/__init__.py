"""Clusters of any size without machines: production coordinator code, workers made of calibrated times.

A package of its own, between the coordinator whose decisions it runs and the command line that asks it: `baton plan`
is product code, so what it needs is shipped, its default calibration included; benchmarks compare policies with it.
Owns virtual time, requests over that time, and the search for a shape; must not know flags, processes or sockets.
"""
