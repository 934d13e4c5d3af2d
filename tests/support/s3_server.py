"""A real S3 server (moto) on a free loopback port, for tests with an object store."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyarrow import fs

SECRET = "not-in-any-message"


@contextmanager
def s3_bucket(folder: Path) -> Iterator[str]:
    """`s3://…` of an empty bucket, with endpoint and credentials in the environment as a user would set them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (folder / "moto.log").open("wb")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        _wait_for(port, server)
        fs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{port}", scheme="http", allow_bucket_creation=True
        ).create_dir("runs")
        yield "s3://runs"
    finally:
        os.kill(server.pid, signal.SIGTERM)
        server.wait(10)
        log.close()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _wait_for(port, server):
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, "the S3 server ended before it answered"
            assert time.monotonic() < deadline, "the S3 server did not answer within 60 s"
            time.sleep(0.1)


def objects_in(uri):
    """The objects under a URI, by relative path, and their file system."""
    filesystem, path = fs.FileSystem.from_uri(
        f"{uri}?endpoint_override={os.environ['AWS_ENDPOINT_URL'][7:]}&scheme=http"
    )
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return {
        info.path.removeprefix(path + "/"): info for info in found if info.type == fs.FileType.File
    }, filesystem
