"""What command lines have in common: kinds of values, and options that several of them take."""
