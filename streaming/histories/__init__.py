"""What is remembered of users: events, negatives, changes."""
