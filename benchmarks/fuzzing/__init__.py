"""Damaged input for every decoder: what there is to damage, how, and what is held against it."""
