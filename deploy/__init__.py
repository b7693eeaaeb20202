"""Command line, configuration, launchers and the processes they start. The only package that imports all others."""
