"""Faults of machines from their vibration, as a Flower app."""
