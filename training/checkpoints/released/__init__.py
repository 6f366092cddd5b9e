"""Read released snapshots without executing anything in them."""
