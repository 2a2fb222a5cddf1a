"""Both stages, from a configuration to results.

The Brains, checkpoints, ranks, configuration, and the experiment that joins
them. Here lives nothing that parses a command line.
"""
