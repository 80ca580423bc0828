"""Measurements of speed, memory, bytes and learning: ``python -m benchmarks NAME``."""
