"""What keeps a client's data from others: bounds, noise and accounts of it, and secure sums."""
