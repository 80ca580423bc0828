"""What would break a client that only runs forwards."""
