"""Hugging Face models, cut between their blocks."""
