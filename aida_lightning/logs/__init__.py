"""Event files: the tags in them, their writing and reading, and the runs that they describe."""
