"""One training step, and its guard against bad events."""
