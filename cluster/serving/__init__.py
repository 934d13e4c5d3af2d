"""Recommendations from an index version and the histories of a checkpoint."""
