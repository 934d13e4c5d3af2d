"""Opens the storage at a location: a folder, or the URI of an object store."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from retrieval.storage.base import CHECKPOINTS, Kind, Storage, StorageLocationError
from retrieval.storage.cache import FileCache
from retrieval.storage.local import LocalStorage
from retrieval.storage.objects import ObjectStorage


def open_storage(location: str | Path, kind: Kind = CHECKPOINTS, cache: FileCache | None = None) -> Storage:
    """The storage at a folder or at a URI such as `s3://bucket/prefix`.

    Credentials and endpoint come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL and
    so on); options such as the region can be in the URI's query.

    Args:
        location: the folder or URI.
        kind: what is stored there; its setting is named in errors.
        cache: for copies of files in an object store; by default the user's.
    Raises:
        StorageLocationError: credentials in the URI, or a scheme that pyarrow.fs does not support.
    """
    text = str(location)
    if "://" not in text:
        return LocalStorage(Path(text).expanduser(), kind)
    parts = urlsplit(text)
    if parts.username or parts.password or re.search(r"(access|secret)[_-]?key", parts.query, re.IGNORECASE):
        raise StorageLocationError(
            f"{kind.setting} holds credentials for {parts.scheme}://{parts.hostname}; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment instead"
        )
    try:
        filesystem, prefix = fs.FileSystem.from_uri(_with_endpoint(text))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StorageLocationError(
            f"no {kind.plural} can be kept at {text} ({kind.setting}): {error}"
        ) from error
    return ObjectStorage(filesystem, prefix, text, kind, cache)


def _with_endpoint(uri: str) -> str:
    """Add the endpoint to the URI, because older versions of Arrow do not read AWS_ENDPOINT_URL."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint or not uri.startswith("s3://") or "endpoint_override" in uri:
        return uri
    parts = urlsplit(endpoint)
    joint = "&" if "?" in uri else "?"
    return f"{uri}{joint}endpoint_override={parts.netloc}&scheme={parts.scheme}"
