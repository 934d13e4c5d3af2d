"""What an event is: its columns, ids, times, places, and what makes one unusable."""
