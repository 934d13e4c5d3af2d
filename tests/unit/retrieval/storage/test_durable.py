import errno

import pytest

from retrieval.storage.durable import naming, seal, write_durably
from tests.support.full_disk import refusing


def test_a_full_disk_is_told_with_the_file_that_found_no_room(tmp_path):
    (tmp_path / "rows.arrow").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*/rows\.arrow") as full:
        write_durably(tmp_path / "rows.arrow", b"x" * 100)
    assert full.value.errno == errno.ENOSPC


@pytest.mark.parametrize("make", [lambda path: write_durably(path, b"data"), seal])
def test_a_file_that_cannot_be_made_durable_is_named(tmp_path, make):
    (tmp_path / "towers").write_bytes(b"data")
    with refusing("fsync"), pytest.raises(OSError, match=r"No space left on device: .*/towers"):
        make(tmp_path / "towers")


def test_an_error_without_a_number_keeps_its_words_and_one_with_a_file_stays_as_it_is(tmp_path):
    with pytest.raises(OSError, match=r"items\.arrow: Arrow found no room"), naming(tmp_path / "items.arrow"):
        raise OSError("Arrow found no room")
    with pytest.raises(FileNotFoundError, match=r"elsewhere'$"), naming(tmp_path / "items.arrow"):
        (tmp_path / "elsewhere").read_bytes()
