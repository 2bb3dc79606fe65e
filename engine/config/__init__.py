"""Typed configuration keys with their units and ranges, and the presets of `configs/`."""
