"""Extract surfaces from densities, colour them, write mesh and volume files."""
