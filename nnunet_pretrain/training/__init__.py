"""Losses, metrics, schedules and the parts trainers are combined of. Import the modules directly: they need torch."""
