"""Deltas: what changed since a version was built, in numbered sets of files that follow the version."""
