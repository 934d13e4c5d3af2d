"""Where Numba keeps what it has compiled; the lowest layer, imported by every package that has such functions."""
