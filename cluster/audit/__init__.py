"""Read-only checks: the content of checkpoints, and whether every event was used exactly once."""
