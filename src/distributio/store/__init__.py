"""Where it is kept: database and files."""
