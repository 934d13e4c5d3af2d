"""The command line, the demo and job submission.

The only package that reads settings files and uses a terminal.
"""

import cluster  # noqa: F401  first of all: it finds a place for Numba's cache
