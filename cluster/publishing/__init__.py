"""From the trained towers to fresh answers: item vectors, index versions, and the served model."""
