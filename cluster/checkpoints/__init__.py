"""Checkpoints of stream and model together: what they hold, how they are written, and who may write."""
