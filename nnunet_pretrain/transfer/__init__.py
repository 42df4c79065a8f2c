"""From a pre-trained checkpoint to a target dataset. Import the modules directly: they need torch."""
