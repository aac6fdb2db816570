"""Pyro and NumPyro by the same names, for programs that are written once for both."""
