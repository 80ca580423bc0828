"""What clients are built from."""
