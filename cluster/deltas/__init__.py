"""Deltas of the live version: what changed in a run since the last one, encoded by the version's towers."""
