"""A model as a recorded graph, and where it can be cut."""
