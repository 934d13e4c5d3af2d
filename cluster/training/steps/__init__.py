"""One training step, and what guards it."""
