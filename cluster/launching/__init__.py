"""Ray: starting or joining it, running a run's workers, and ending them."""
