"""A run's screen."""
