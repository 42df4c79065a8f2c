"""Presets for planning and training, one JSON file each."""
