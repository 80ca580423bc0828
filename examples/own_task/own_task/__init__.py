"""A task of one's own, as a Flower app."""
