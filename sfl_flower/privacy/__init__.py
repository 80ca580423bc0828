"""What keeps a client's data from others: secure sums."""
