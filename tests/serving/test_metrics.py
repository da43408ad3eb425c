"""What nodes that answer tell of themselves: scraped from real ones while they do."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import urllib.request
from collections.abc import Callable

import pytest
from prometheus_client import parser

from sfl.errors import ProtocolError
from sfl.metrics.histogram import Histogram
from sfl.metrics.said import DevicesSaid
from sfl.metrics.serving import Held, Serving, ServingCount
from sfl.metrics.snapshot import NodeSnapshot
from sfl.stage.serving.messages import Opening
from sfl.transport.serve.words import Closed
from tests.house.endpoint import PROMPT, Api, endpoint
from tests.house.paths import ROOT
from tests.house.waiting import PATIENCE
from tools.dashboards import metrics_in

Scraped = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(url: str) -> Scraped:
    """Samples by name and labels."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


class Nodes:
    """Where the edge and the device of this process serve `/metrics`, by their logs."""

    def __init__(self, log: pytest.LogCaptureFixture) -> None:
        found = re.findall(r"metrics at (http\S+)", log.text)
        assert len(found) == 2, log.text
        self.edge, self.device = found  # the edge is there first

    async def read(self, url: str) -> Scraped:
        return await asyncio.to_thread(scraped, url)

    async def until(self, url: str, sound: Callable[[Scraped], bool]) -> Scraped:
        deadline = time.monotonic() + PATIENCE
        while not sound(found := await self.read(url)):
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.1)
        return found


def value(found: Scraped, name: str, device: str = "", **labels: str) -> float:
    return found[name, tuple(sorted({"device": device, **labels}.items()))]


@pytest.mark.process
def test_answers_are_counted_at_the_device_and_shown_by_its_edge(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def run() -> None:
        async with endpoint(edge_metrics=True, device_metrics=True) as api:
            nodes = Nodes(caplog)
            await api.text()
            await asyncio.gather(*(api.text(max_tokens=20) for _ in range(3)))
            own = await nodes.read(nodes.device)
            assert value(own, "sfl_serve_answer_tokens_total", "d") == 12 + 3 * 20
            assert value(own, "sfl_serve_answers_total", "d", end="length") == 4
            assert value(own, "sfl_serve_first_token_seconds_count", "d") == 4
            assert value(own, "sfl_serve_between_tokens_seconds_count", "d") == 11 + 3 * 19
            assert value(own, "sfl_serve_round_trips_total", "d") == 12 + 3 * 20  # no drafts
            assert value(own, "sfl_serve_prompt_tokens_total", "d") % 4 == 0
            assert value(own, "sfl_serve_edge_connected", "d") == 1
            for way in ("up", "down"):
                assert value(own, "sfl_serve_wire_bytes_total", "d", direction=way) > 1000
            # The edge shows the device's with its next heartbeat, and its own.
            told = await nodes.until(
                nodes.edge,
                lambda found: (
                    found.get(("sfl_serve_answers_total", (("device", "d"), ("end", "length"))))
                    == 4
                ),
            )
            assert value(told, "sfl_serve_answer_tokens_total", "d") == 12 + 3 * 20
            assert value(told, "sfl_connected_nodes") == 1
            assert value(told, "sfl_serve_conversations", state="idle") == 4
            steps = value(told, "sfl_serve_batch_size_sum")
            assert steps == 12 + 3 * 20  # a prompt's last piece is such a step, and its first token
            batches = value(told, "sfl_serve_batch_size_count")
            assert steps / 3 <= batches <= steps
            kv, budget = (value(told, f"sfl_serve_kv{n}_bytes") for n in ("", "_budget"))
            assert 0 < kv <= budget <= 64e6

    asyncio.run(run())


@pytest.mark.process
def test_who_finds_no_room_or_leaves_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def leaves(api: Api) -> None:
        body = {"model": "base", "prompt": PROMPT, "stream": True, "max_tokens": 100}
        async with api.session.post(api.base + "/v1/completions", json=body) as response:
            await response.content.readline()
            response.close()

    async def run() -> None:
        room = {"kv_memory": "400KB"}  # of three pages
        async with endpoint(room, edge_metrics=True, device_metrics=True) as api:
            nodes = Nodes(caplog)
            await asyncio.gather(*(api.text(max_tokens=50) for _ in range(5)))
            found = await nodes.read(nodes.edge)
            assert value(found, "sfl_serve_refusals_total", reason="busy") > 0
            left = [
                value(found, "sfl_serve_evictions_total", way=way)
                for way in ("spilled", "forgotten")
            ]
            assert sum(left) >= 2
            link = await api.device.talker.link()
            assert isinstance(await link.open(Opening("x", "nobody", 1, 4, True, 5)), Closed)
            found = await nodes.read(nodes.edge)
            assert value(found, "sfl_serve_refusals_total", reason="refused") == 1
            await leaves(api)
            own = await nodes.until(
                nodes.device,
                lambda own: value(own, "sfl_serve_answers_total", "d", end="left") == 1,
            )
            assert value(own, "sfl_serve_answers_total", "d", end="failed") == 0
            assert "Traceback" not in caplog.text

    asyncio.run(run())


@pytest.mark.process
def test_the_dashboard_names_series_that_real_nodes_have(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    text = (ROOT / "docker" / "grafana" / "dashboards" / "sfl-serving.json").read_text()
    asked = [target["expr"] for panel in json.loads(text)["panels"] for target in panel["targets"]]

    async def run() -> None:
        async with endpoint(edge_metrics=True, device_metrics=True) as api:
            nodes = Nodes(caplog)
            await api.text()
            edge, device = await nodes.read(nodes.edge), await nodes.read(nodes.device)
            there = {name for name, _ in (*edge, *device)}
            for expr in asked:
                names = re.findall(r"\bsfl_\w+", expr)
                assert metrics_in(expr) and set(names) <= there, expr
            assert sum("device=~" in expr for expr in asked) > 8

    asyncio.run(run())


# -- values ---------------------------------------------------------------------------------------


def counted() -> Serving:
    count = ServingCount(
        lambda: Held({"idle": 2}, {"spilled": 1}, 5, 9, 1.0, drafted=4, accepted=3)
    )
    count.began(7)
    count.token(0.3, first=True)
    count.token(0.02, first=False)
    count.batch.observe(3)
    count.ended("stop")
    count.refused("busy")
    return count.snapshot()


def test_figures_are_the_same_behind_the_wire() -> None:
    serving = counted()
    assert (serving.prompt_tokens, serving.answer_tokens) == (7, 2)
    assert sum(serving.first_token.buckets) == 1 and serving.first_token.total == 0.3
    assert serving.batch.buckets[2] == 1  # at most 4
    snapshot = NodeSnapshot("d", "device", serving=serving)
    assert NodeSnapshot.from_json(snapshot.to_json()) == snapshot
    assert len(snapshot.to_json()) < 3000


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("first_token", [1.0, [1, 2]]),
        ("first_token", [-1.0, [0] * 15]),
        ("answer_tokens", -1),
        ("held", {"kv_bytes": "many"}),
        ("endings", {"stop": -3}),
        ("batch", 5),
    ],
)
def test_what_no_device_tells_is_refused(key: str, bad: object) -> None:
    values = {**NodeSnapshot("d", "device").to_dict(), "serving": {key: bad}}
    with pytest.raises(ProtocolError, match="malformed"):
        NodeSnapshot.from_dict(values)


def test_what_another_version_tells_is_let_pass() -> None:
    values = NodeSnapshot("d", "device").to_dict()
    read = NodeSnapshot.from_dict({**values, "serving": {"of_tomorrow": 1}}).serving
    assert read == Serving()
    assert isinstance(Serving().batch, Histogram)


def test_silent_devices_are_shown_and_bounded() -> None:
    said = DevicesSaid(most=2)
    for name in ("a", "b", "c"):
        said.heard(name, NodeSnapshot(name, "device"))
    assert [one.name for one in said.latest()] == ["b", "c"]
    assert all(one.seen_at for one in said.latest())
    said.left("b")
    said.left("unknown")
    assert [one.name for one in said.latest()] == ["c"]
