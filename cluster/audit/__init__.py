"""Read-only checks: what checkpoints hold, and whether every event was trained once."""
