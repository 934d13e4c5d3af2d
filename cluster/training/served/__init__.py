"""Served progressive validation: sampled events answered by the live index version, in a process beside training."""
