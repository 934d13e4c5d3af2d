"""Recommendations from a checkpoint and an index version."""
