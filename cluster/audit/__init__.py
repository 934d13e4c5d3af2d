"""Judges that only read: what checkpoints hold, and whether every event was trained once."""
