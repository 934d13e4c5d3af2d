"""Letters of what could not be used, and bringing them back."""
