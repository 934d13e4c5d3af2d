"""From a committed checkpoint to a live index version: item vectors, gates, builders beside training."""
