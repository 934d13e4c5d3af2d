"""What is remembered about users: events, negatives, changes."""
