"""Identities as clouds of 3D Gaussians: fit to the model's renderings, rendered, written."""
