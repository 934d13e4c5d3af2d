"""The figures measured during a run, and the files that they are written to."""
