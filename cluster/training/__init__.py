"""The worker loop: one global step after the other, from the stream to the next checkpoint."""
