"""Publishing: item vectors, index versions, and the served model."""
