"""Small helpers that know nothing of torch: errors, console, files."""
