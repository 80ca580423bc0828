"""What every cut of a model asks of a client, and which to take."""
