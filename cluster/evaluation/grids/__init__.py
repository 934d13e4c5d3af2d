"""The cells of an evaluation: choosing and running them, their files, and their summary."""
