"""Draw grids and strips of pictures, renderings and depths."""
