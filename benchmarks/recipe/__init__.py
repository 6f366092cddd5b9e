"""What helps learning, measured: python -m benchmarks.recipe (docs/recipe.md)."""
