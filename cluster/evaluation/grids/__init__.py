"""Cells of an evaluation: which, where they run, their files and summary."""
