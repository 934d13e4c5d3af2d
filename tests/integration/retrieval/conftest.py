"""An object store on this machine, and a cache of the test's own."""

import pytest

from tests.support.s3_server import s3_bucket


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """`s3://…` of an empty bucket."""
    with s3_bucket(tmp_path_factory.mktemp("s3")) as uri:
        yield uri


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of copies from the object store."""
    monkeypatch.setenv("FRESHET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "objects"
