"""The state of a run, and how it is saved and restored."""
