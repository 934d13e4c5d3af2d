"""What is measured while a run goes on, and where it is written."""
