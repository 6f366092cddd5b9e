"""Render the built-in data set: random heads with exactly known cameras."""
