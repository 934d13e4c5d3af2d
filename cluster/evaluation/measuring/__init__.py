"""Measures of rankings, and whether a difference is significant."""
