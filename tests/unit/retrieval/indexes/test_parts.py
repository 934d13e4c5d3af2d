import numpy as np
import pyarrow as pa
import pytest

from retrieval.indexes.ivf import IndexInputError
from retrieval.indexes.parts import read_ids, read_parts, write_part


def vectors(rows, dim=3):
    return np.arange(rows * dim, dtype=np.float32).reshape(rows, dim)


def test_parts_come_back_as_one_sorted_by_id_with_their_vectors(tmp_path):
    write_part(tmp_path / "a", np.array([7, -3]), vectors(2))
    write_part(tmp_path / "b", np.array([], np.int64), vectors(0))
    write_part(tmp_path / "c", np.array([5]), vectors(1) + 100)
    ids, found = read_parts([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    assert ids.tolist() == [-3, 5, 7]
    assert found.tolist() == [[3, 4, 5], [100, 101, 102], [0, 1, 2]]
    assert found.flags.c_contiguous


def test_parts_that_are_all_empty_hold_no_items(tmp_path):
    write_part(tmp_path / "a", np.array([], np.int64), vectors(0))
    ids, found = read_parts([tmp_path / "a"])
    assert (ids.shape, found.shape) == ((0,), (0, 3))


def test_ids_are_read_without_the_vectors(tmp_path):
    write_part(tmp_path / "a", np.array([7, -3]), vectors(2))
    assert read_ids(tmp_path / "a").tolist() == [7, -3]


def test_an_item_in_two_parts_is_refused_by_its_id(tmp_path):
    write_part(tmp_path / "a", np.array([1, 41]), vectors(2))
    write_part(tmp_path / "b", np.array([41]), vectors(1))
    with pytest.raises(IndexInputError, match="first item 41"):
        read_parts([tmp_path / "a", tmp_path / "b"])


def test_parts_of_different_widths_are_refused(tmp_path):
    write_part(tmp_path / "a", np.array([1]), vectors(1, 3))
    write_part(tmp_path / "b", np.array([2]), vectors(1, 4))
    with pytest.raises(IndexInputError, match=r"widths \[3, 4\]"):
        read_parts([tmp_path / "a", tmp_path / "b"])


def test_a_file_that_is_no_part_is_named(tmp_path):
    (tmp_path / "a").write_bytes(b"not arrow at all")
    with pa.OSFile(str(tmp_path / "b"), "wb") as sink, pa.ipc.new_file(sink, pa.schema({"x": pa.int8()})):
        pass
    for name in ("a", "b"):
        with pytest.raises(IndexInputError, match=f"{tmp_path / name} "):
            read_parts([tmp_path / name])
    with pytest.raises(FileNotFoundError, match=str(tmp_path / "missing")):
        read_parts([tmp_path / "missing"])


def test_no_parts_and_too_few_ids_are_refused(tmp_path):
    with pytest.raises(IndexInputError, match="no parts"):
        read_parts([])
    with pytest.raises(IndexInputError, match=r"\(1,\) for vectors of shape \(2, 3\)"):
        write_part(tmp_path / "a", np.array([1]), vectors(2))
