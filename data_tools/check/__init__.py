"""Look at a data set before it is trained on: labels, pictures, scene, and likely mistakes."""
