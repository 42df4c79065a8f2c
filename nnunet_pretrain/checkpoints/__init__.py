"""Reading checkpoints safely, and their cards. Import the modules directly: they need torch."""
