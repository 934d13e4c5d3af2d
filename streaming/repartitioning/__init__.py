"""Copies a topic of any key, exactly once, into one whose partitions hold whole users."""
