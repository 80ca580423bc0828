"""A run as others read it: a page of its figures, and its model as a folder of files."""
