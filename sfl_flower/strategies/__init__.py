"""The server half of each method; a file a method, beside what they share."""
