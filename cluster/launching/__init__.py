"""Ray: starting or joining it, a run's workers, their end."""
