"""Ours, so that a package called `tests` that some dependency installs is not taken for it."""
