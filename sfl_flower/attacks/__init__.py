"""What a server can work out from smashed data, by cut and defence."""
