"""Arrays that grow without moving."""

import mmap

import numpy as np

from model import reserved_memory
from model.reserved_memory import GrowingArray, machine_bytes


def test_a_view_of_few_rows_and_one_of_more_are_the_same_memory_and_new_rows_are_zero():
    array = GrowingArray(machine_bytes() // 32, (8,), np.float32)
    few = array.first(3)
    few[:] = 7
    more = array.first(100_000)
    assert (more[:3] == 7).all()
    assert not more[3:].any()
    more[1] = 5
    assert (few[1] == 5).all()
    assert few.shape == (3, 8)


def test_where_addresses_are_scarce_fewer_are_reserved_and_growing_copies(monkeypatch):
    real = mmap.mmap

    def scarce(fd, size, **options):
        if size > 1 << 20:
            raise OSError("no room")
        return real(fd, size, **options)

    monkeypatch.setattr(reserved_memory.mmap, "mmap", scarce)  # type: ignore[attr-defined]
    array = GrowingArray(1 << 40, (), np.int64)
    array.first(1000)[:] = np.arange(1000)
    monkeypatch.setattr(reserved_memory.mmap, "mmap", real)  # type: ignore[attr-defined]
    grown = array.first(1_000_000)
    assert (grown[:1000] == np.arange(1000)).all()
    assert not grown[1000:].any()
