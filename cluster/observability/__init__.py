"""What is measured during a run, and where it is written."""
