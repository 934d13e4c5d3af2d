"""What a run holds, saves and restores."""
