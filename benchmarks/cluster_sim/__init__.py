"""Clusters of any size without machines: production coordinator code, workers made of calibrated times."""
