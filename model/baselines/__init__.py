"""Streaming baselines: the floors that a trained model must clear, counted from the same events."""
