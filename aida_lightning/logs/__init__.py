"""Event files: the tags in them, how they are written and read, and the runs that they tell of."""
