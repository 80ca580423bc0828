"""The `sfl` command."""
