"""Measurements of this library, each in a process of its own: ``python -m benchmarks``."""
