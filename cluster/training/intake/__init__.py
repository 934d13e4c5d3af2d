"""The input of a run: the stream and the catalogue."""
