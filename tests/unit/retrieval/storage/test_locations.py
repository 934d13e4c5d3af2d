"""A location is a folder or a URI, and is passed unchanged from the user to the code that opens it."""

import pytest
from pyarrow import fs

from retrieval.storage.base import CHECKPOINTS, VERSIONS
from retrieval.storage.local import LocalStorage
from retrieval.storage.location import absolute_location, split_location
from retrieval.storage.objects import ObjectStorage
from retrieval.storage.opening import open_storage


@pytest.mark.parametrize(
    ("location", "root", "name"),
    [
        ("runs/a/checkpoints/step-00000001", "runs/a/checkpoints", "step-00000001"),
        ("step-00000001/", ".", "step-00000001"),
        ("/step-00000001", "/", "step-00000001"),
        ("s3://bucket/a/step-00000001", "s3://bucket/a", "step-00000001"),
        ("s3://bucket/a/step-00000001/?region=x", "s3://bucket/a?region=x", "step-00000001"),
        ("what?/step-00000001", "what?", "step-00000001"),
    ],
)
def test_the_location_of_a_checkpoint_is_its_storage_and_its_name(location, root, name):
    assert split_location(location) == (root, name)


def test_a_relative_folder_becomes_absolute_and_a_uri_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_location("runs/a") == str(tmp_path / "runs/a")
    for same in ("", "s3://bucket/a//b", "gs://bucket/a?x=1", str(tmp_path)):
        assert absolute_location(same) == same


def test_a_set_in_an_object_store_is_found_again_with_the_options_of_its_uri(tmp_path):
    storage = ObjectStorage(fs.LocalFileSystem(), str(tmp_path), "s3://bucket/a/?region=x")
    assert storage.where == "s3://bucket/a"
    assert storage.location() == "s3://bucket/a?region=x"
    assert split_location(storage.location("step-00000001")) == (storage.location(), "step-00000001")
    plain = LocalStorage(tmp_path)
    assert (plain.location(), plain.location("v00000001")) == (str(tmp_path), str(tmp_path / "v00000001"))


def test_a_uri_keeps_its_options_when_it_is_opened(monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    uri = "s3://bucket/a?region=eu-west-1&endpoint_override=127.0.0.1:9"
    assert open_storage(uri).location("step-00000001") == uri.replace("/a?", "/a/step-00000001?")


def test_names_are_those_of_their_kind():
    names = ["v00000010", "v00000009", "v100000000", "v1", "v00000001.2", "step-00000002.10", "step-00000002"]
    assert VERSIONS.in_order(names) == ["v00000009", "v00000010", "v100000000"]
    assert CHECKPOINTS.in_order([*names, "step-00000002.9"]) == [
        "step-00000002",
        "step-00000002.9",
        "step-00000002.10",
    ]
    assert (VERSIONS.name_of(7), CHECKPOINTS.name_of(7, 1)) == ("v00000007", "step-00000007.1")
