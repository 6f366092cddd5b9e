"""Fly a camera around identities and write videos."""
