"""What helps learning, measured: python -m benchmarks.recipe."""
