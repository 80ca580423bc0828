"""What bounds and accounts for what scalars tell of a sample."""
