"""No deadline: the first example of a test compiles Numba kernels, and the machine may be busy."""

from hypothesis import settings

settings.register_profile("unhurried", deadline=None, max_examples=60)
settings.load_profile("unhurried")
