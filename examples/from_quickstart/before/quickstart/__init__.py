"""A quickstart: a small convolutional net on handwritten digits."""
