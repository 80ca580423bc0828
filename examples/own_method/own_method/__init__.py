"""A method of one's own, as a Flower app."""
