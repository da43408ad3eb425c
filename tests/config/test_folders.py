"""Folders that a setting names and that cannot be written: one line, the setting, a fix; exit 2."""

from __future__ import annotations

import asyncio
import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from edge_server.base import load_base
from edge_server.server import EdgeServer
from sfl.codec.transform import RowContext
from sfl.config import EdgeConfig, RunSettings
from sfl.config.codec import RoleCodecs
from sfl.errors import ConfigError, ModelError, ProtocolError
from sfl.metrics.stats import NodeStats
from sfl.node.files import writable_folder
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from sfl.transport.bulk import fetch
from sfl.transport.bulk.fetch import fetch_model
from sfl.transport.device.stream_codecs import StreamCodecs
from sfl.v1 import edge_pb2
from tests.house.federation import sfl
from tests.house.paths import QUICKSTART


@pytest.fixture(autouse=True)
def loop() -> Iterator[None]:
    """An edge opens its channel to the cloud where it is made, as in a running loop."""
    own = asyncio.new_event_loop()
    asyncio.set_event_loop(own)
    yield
    asyncio.set_event_loop(None)
    own.close()


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A path below a file, which no one can make; root could write to most others."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "folder"


HOMES = str(QUICKSTART / "homes.toml")


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("run", HOMES, "--set", "run.output_dir={}"), "run.output_dir"),
        (("cloud", HOMES, "--set", "run.output_dir={}"), "run.output_dir"),
        (("init", "{}/run.toml"), "path"),
        (("ca", "init", "--dir", "{}"), "--dir"),
    ],
)
def test_a_command_says_which_and_what_to_do(
    arguments: tuple[str, ...], field: str, blocked: Path
) -> None:
    done = sfl(*(argument.format(blocked) for argument in arguments))
    assert done.returncode == 2, done.stderr
    said = re.sub(r"\s+", " ", done.stderr)
    assert f"{field} = " in said and "written" in said and "Name a f" in said
    assert "Traceback" not in done.stderr and "bug" not in done.stderr


@pytest.mark.process
def test_keys_need_a_folder_too(blocked: Path, tmp_path: Path) -> None:
    assert sfl("ca", "init", "--dir", tmp_path / "ca").returncode == 0
    issue = ("ca", "issue", "pi", "--role", "device", "--dir", tmp_path / "ca")
    done = sfl(*issue, "--out", blocked)
    assert done.returncode == 2 and "--out = " in done.stderr and "Traceback" not in done.stderr


def test_a_device_is_told_before_anything_is_fetched(blocked: Path) -> None:
    with pytest.raises(ConfigError, match=r"device\.cache_dir = .* nothing can be written there"):
        fetch_model(cast(Any, None), "pi", blocked, NodeStats("pi", "device"))


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("config.json", "../../../.ssh/authorized_keys"),
        ("config.json", "A" * 64),
        ("config.json", "a" * 63),
        ("../config.json", "a" * 64),
        ("..", "a" * 64),
        ("a/b", "a" * 64),
        (".bashrc", "a" * 64),
        ("", "a" * 64),
    ],
)
def test_what_an_edge_lists_leads_nowhere_out_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, digest: str
) -> None:
    entries = [
        edge_pb2.FileEntry(name="config.json", sha256="b" * 64),
        edge_pb2.FileEntry(name=name, sha256=digest),
    ]
    listing = SimpleNamespace(
        stub=lambda channel: lambda asked, **_: edge_pb2.FileList(files=entries)
    )
    monkeypatch.setattr(fetch, "EDGE_LIST_FILES", listing)
    with pytest.raises(ProtocolError, match="from the edge is no"):
        fetch_model(cast(Any, None), "pi", tmp_path / "cache", NodeStats("pi", "device"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_devices_that_share_a_cache_never_see_half_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no hard link can be made: `link` fails, too, while another device renames the same."""
    content, copy, seen = b'{"model_type": "llama"}', shutil.copyfile, []
    digest = hashlib.sha256(content).hexdigest()
    blob = tmp_path / "cache" / "blobs" / digest
    blob.parent.mkdir(parents=True)
    blob.write_bytes(content)
    entry = edge_pb2.FileEntry(name="config.json", sha256=digest, num_bytes=len(content))
    listing = SimpleNamespace(
        stub=lambda channel: lambda asked, **_: edge_pb2.FileList(files=[entry])
    )

    def watched(source: Path, target: Path) -> None:
        Path(target).touch()
        seen.extend(path.read_bytes() for path in tmp_path.glob("cache/spans/*/config.json"))
        copy(source, target)

    def unlinkable(target: Path, source: Path) -> None:
        raise FileNotFoundError(str(source))

    monkeypatch.setattr(fetch, "EDGE_LIST_FILES", listing)
    monkeypatch.setattr(shutil, "copyfile", watched)
    monkeypatch.setattr(Path, "hardlink_to", unlinkable)
    folder = fetch_model(cast(Any, None), "pi", tmp_path / "cache", NodeStats("pi", "device"))
    assert seen == [] and {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "config.json": content
    }


def activation() -> TensorMessage:
    rows = torch.ones(2, 8)
    context = RowContext(*(np.arange(2) for _ in range(4)))
    key = Key(Purpose.TRAINING, 1, 0, 0)
    return TensorMessage(Kind.ACTIVATION, key, 1, (2,), rows, context=context)


def ends(device: Path, edge: Path) -> tuple[StreamCodecs, StreamCodecs]:
    roles = dict.fromkeys(RoleCodecs.model_fields, "none")
    codecs = RoleCodecs(**roles | {"activation": "delta(sample, 64) | int(4)"})
    cuts = StreamCodecs("device", "pi", 0, True, device), StreamCodecs("edge", "pi", 0, True, edge)
    for cut in cuts:
        cut.begin_round(codecs, 1)
    return cuts


def test_what_delta_remembers_of_samples_needs_one_at_both_ends(
    blocked: Path, tmp_path: Path
) -> None:
    device, _ = ends(blocked, tmp_path)
    with pytest.raises(ConfigError, match=r"^device\.cache_dir = "):
        device.encode(activation())
    device, edge = ends(tmp_path, blocked)
    packet = device.encode(activation())
    assert packet is not None
    with pytest.raises(ConfigError, match=r"^edge\.cache_dir = "):
        edge.decode(packet, activation(), None)


@pytest.mark.parametrize("when", ["always", "later"])
def test_an_edge_finds_out_before_it_loads(blocked: Path, tmp_path: Path, when: str) -> None:
    config = EdgeConfig(cloud="localhost:1", cache_dir=blocked)
    stats = NodeStats("edge", "edge")
    sample = {"activation": "delta(sample) | int(4)"}
    codec = sample if when == "always" else {"schedule": [{"from_round": 2, **sample}]}
    run: dict[str, Any] = {"model": {"path": str(tmp_path)}, "devices": [{"name": "pi"}]}
    with pytest.raises(ConfigError, match=r"^edge\.cache_dir = "):
        load_base(config, RunSettings.model_validate(run | {"codec": codec}), 1, stats)
    # Who remembers no samples needs no folder: then the missing model is what is wrong.
    with pytest.raises(ModelError, match=r"^model\.path = "):
        load_base(config, RunSettings.model_validate(run), 1, stats)


def test_what_delta_remembers_of_samples_lies_in_the_edges_folder(tmp_path: Path) -> None:
    async def cache_dir() -> Path | None:
        server = EdgeServer(config, 1, False)
        server.engine.close()
        server.service.close()
        await server.cloud.close()
        return server.service.entrance.cache_dir

    config = EdgeConfig(cloud="localhost:1", cache_dir=tmp_path / "made")
    device, edge = ends(tmp_path / "other", asyncio.run(cache_dir()))
    packet = device.encode(activation())
    assert packet is not None
    edge.decode(packet, activation(), None)
    # The file has no name; the folder it lies in was made for it.
    assert (tmp_path / "made").is_dir() and list((tmp_path / "made").iterdir()) == []


def test_an_edge_is_told_before_it_loads(blocked: Path) -> None:
    config = EdgeConfig(cloud="localhost:1", resident_adapters=1, swap_to="disk", swap_dir=blocked)
    with pytest.raises(ConfigError, match=r"edge\.swap_dir"):
        EdgeServer(config, 1, False)


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path: Path) -> None:
    made = writable_folder(tmp_path / "a" / "b", "field", private=True)
    assert made == tmp_path / "a" / "b" and list(made.iterdir()) == []
    assert made.stat().st_mode & 0o777 == 0o700
