"""Declare the settings, their presets and their checks."""
