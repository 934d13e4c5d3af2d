"""What an event is: its columns, ids, times and positions, and what makes it unusable."""
