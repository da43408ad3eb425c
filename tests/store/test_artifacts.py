"""Files by their hash, in a folder and in a bucket of a real S3 server."""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sfl.config.load import read_run, validated
from sfl.config.service import ServiceSettings
from sfl.errors import ConfigError, DiskError, NotYet
from sfl.node import extras
from sfl.store.artifacts import ArtifactStore, restore, same
from tests.house.s3 import S3, SECRET

Where = tuple[str, Path, Callable[[], None]]


@pytest.fixture(params=["folder", pytest.param("S3", marks=pytest.mark.process)])
def where(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Where:
    """A place by its URL, the folder that is behind it, and what tells the server of changes."""
    if request.param == "folder":
        return f"file://{tmp_path}/kept here", tmp_path / "kept here", lambda: None
    server: S3 = request.getfixturevalue("s3")
    server.use(monkeypatch)
    bucket = server.bucket()
    behind = server.folder / bucket / "some" / "prefix"
    return f"s3://{bucket}/some/prefix", behind, server.look_again


def store(url: str, run_id: str = "t") -> ArtifactStore:
    return ArtifactStore("cloud.artifacts", url, run_id)


def test_what_was_put_is_there_for_another_process(where: Where) -> None:
    url, folder, _ = where
    first = store(url)
    first.check()
    data = bytes(range(256)) * 1000
    digest = first.put(data)
    assert digest == hashlib.sha256(data).hexdigest() == first.put(data)
    other = store(url)
    assert other.get(digest) == data and other.names() == {digest}
    assert (folder / "t" / "objects" / digest).read_bytes() == data
    assert store(url, "another").names() == set()
    first.publish("adapter/weights", b"result")
    assert (folder / "t" / "adapter" / "weights").read_bytes() == b"result"
    other.delete([digest, "0" * 64])
    assert other.names() == set()
    assert {path.name for path in folder.rglob("*") if path.is_file()} == {"weights"}


def test_more_than_one_piece_is_put_at_once(where: Where) -> None:
    """S3 takes large files in parts."""
    data = b"0123456789abcdef" * (60 << 16)
    digest = store(where[0]).put(data)
    assert store(where[0]).get(digest) == data


def test_what_has_changed_is_not_given(where: Where) -> None:
    url, folder, look_again = where
    digest = store(url).put(b"whole")
    (folder / "t" / "objects" / digest).write_bytes(b"torn")
    look_again()
    with pytest.raises(
        DiskError, match=rf"cloud.artifacts = '{url[:5]}.*{digest[:12]}.* is damaged"
    ):
        store(url).get(digest)
    (folder / "t" / "objects" / digest).unlink()
    look_again()
    with pytest.raises(DiskError, match=rf"{digest[:12]}\.\.\. is not there"):
        store(url).get(digest)


@pytest.mark.process
@pytest.mark.parametrize("problem", ["no server", "no bucket", "secret", "no secret"])
def test_what_is_wrong_with_a_bucket_is_told_before_the_start(
    s3: S3, monkeypatch: pytest.MonkeyPatch, problem: str, tmp_path: Path
) -> None:
    s3.use(monkeypatch)
    bucket = s3.bucket()
    words = {
        "no server": r"it does not answer .*Start it, or check AWS_ENDPOINT_URL",
        "no bucket": r"it is not there .*Make the bucket, or name another",
        "secret": r"it does not let this process in .*Set AWS_ACCESS_KEY_ID",
        "no secret": r"there are no credentials for it .*Set AWS_ACCESS_KEY_ID",
    }[problem]
    if problem == "no server":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    if problem == "no bucket":
        bucket = "none-of-that-name"
    if problem == "secret":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    if problem == "no secret":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=words) as caught:
        store(f"s3://{bucket}/p").check()
    later = problem == "no server"
    assert caught.value.exit_code == (NotYet.exit_code if later else ConfigError.exit_code)
    said = str(caught.value)
    assert said.startswith(f"cloud.artifacts = 's3://{bucket}/p': ")
    assert "\n" not in said and SECRET not in said


def test_a_full_store_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = store(f"file://{tmp_path}")

    def write(name: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sfl.store.place.write_atomic", write)
    with pytest.raises(DiskError, match=r"it is full \(.*No space left.*Make room there\."):
        full.put(b"x")


def test_what_a_bucket_needs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'sfl\[s3\]'"):
        store("s3://bucket")


@pytest.mark.parametrize(
    "url",
    [
        *("what://is/this", "memory://x", "ftp://127.0.0.1/x", "dbfs://x", "data://x", "zip://x"),
        *("github://x", "http://127.0.0.1/x", "file://not/absolute", "s3://", "s3:///x", "folder"),
        *("S3://bucket", "file:///"),
    ],
)
def test_what_is_no_store_is_told_at_the_boundary(url: str) -> None:
    with pytest.raises(ConfigError, match=r"Use s3://BUCKET/PREFIX or file:///FOLDER") as caught:
        store(url)
    assert caught.value.value == url
    said = r"= '" + re.escape(url) + "': a store is s3://BUCKET/PREFIX or file:///FOLDER"
    with pytest.raises(ConfigError, match=said):
        read_run(f'[model]\npath = "m"\n[[devices]]\nname = "d0"\n[cloud]\nartifacts = "{url}"')
    with pytest.raises(ConfigError, match=said):
        validated(ServiceSettings, {"artifacts": url}, "service.")


def test_a_file_that_was_fetched_is_whole(tmp_path: Path) -> None:
    path, digest = tmp_path / "a" / "b", hashlib.sha256(b"data").hexdigest()
    assert not same(path, digest)
    for private in (False, True):
        restore(path, b"data", private=private)
        assert same(path, digest)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found.name for found in path.parent.iterdir()] == ["b"]
