"""Log lines: for people as ever, and as JSON with what is known of run, round, step and device."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from sfl.node.logs import JsonLines, TextLines, describe_node, start_logging
from sfl.node.text import plain
from tests.house.named import Runs

TEXT = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO    sfl\.test: plain$"


@contextlib.contextmanager
def bare_root() -> Iterator[None]:
    """The root logger as a new process has it; pytest's own handlers come with every phase."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level
        logging.captureWarnings(False)


def record(message: str, *values: object, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("sfl.test", logging.INFO, __file__, 1, message, values, None)
    made.__dict__.update(more)
    return made


def test_a_line_says_what_is_known_and_nothing_else() -> None:
    lines = JsonLines()
    lines.about = lambda: {"kind": "edge", "run": "r", "round": 3, "step": 0, "device": ""}
    plain = json.loads(lines.format(record("%d of %d", 1, 2)))
    assert plain.pop("time").endswith("+00:00")
    assert plain == {
        "level": "INFO",
        "logger": "sfl.test",
        "message": "1 of 2",
        "kind": "edge",
        "run": "r",
        "round": 3,
    }
    own = json.loads(lines.format(record("it left", device="a", round=4, path="p")))
    assert (own["device"], own["round"], own["run"]) == ("a", 4, "r")
    assert "path" not in own


def test_a_traceback_and_an_odd_message_stay_one_line() -> None:
    try:
        raise ValueError("line one\nline two")
    except ValueError:
        line = JsonLines().format(record('a\n"b" \u2028 é', exc_info=sys.exc_info()))
    assert "\n" not in line
    values = json.loads(line)
    assert values["message"] == 'a\n"b" \u2028 é'
    assert values["exception"].endswith("ValueError: line one\nline two")


def test_text_is_what_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    with bare_root():
        start_logging()
        describe_node(lambda: {"run": "r"})  # of no consequence here
        logging.getLogger("sfl.test").info("plain")
    line = capsys.readouterr().err.strip()
    assert re.match(TEXT, line)


def test_the_node_is_asked_with_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    rounds = iter((1, 2))
    with bare_root():
        start_logging("json")
        describe_node(lambda: {"round": next(rounds)})
        for _ in range(2):
            logging.getLogger("sfl.test").info("a line")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["round"] for line in lines] == [1, 2]


@pytest.mark.process
def test_every_node_of_a_run_writes_json(runs: Runs) -> None:
    outcome = runs("tls")

    def lines(node: str) -> list[dict[str, Any]]:
        text = (outcome.folder / "logs" / f"{node}.log").read_text()
        return [json.loads(line) for line in text.splitlines()]

    cloud, edge, device = lines("cloud"), lines("edge"), lines("a")
    for kind, node, found in (
        ("cloud", "cloud", cloud),
        ("edge", "edge", edge),
        ("device", "a", device),
    ):
        assert {(line["kind"], line["node"]) for line in found} == {(kind, node)}
    (began,) = (line for line in cloud if line["message"].startswith("round 1 of 2"))
    assert (began["run"], began["round"]) == ("t", 1)
    (joined,) = (line for line in edge if line["message"] == "device a joined")
    assert (joined["run"], joined["device"]) == ("t", "a")
    (first,) = (line for line in device if line["message"] == "first step taken")
    assert [first[name] for name in ("run", "round", "step", "device")] == ["t", 1, 1, "a"]


FORGED = "gone\n2026-11-26 12:00:00,000 ERROR   sfl.cloud: FORGED\x1b[31m \u202e\u2028\ud800"


def test_what_a_peer_says_is_no_line_of_the_log() -> None:
    line = TextLines().format(record("it left: %s", FORGED))
    assert line.isprintable()
    assert line.endswith(r"FORGED\x1b[31m \u202e\u2028\ud800")
    values = JsonLines()
    written = values.format(record("it left: %s", FORGED))
    assert written.isprintable()
    assert json.loads(written)["message"] == f"it left: {FORGED}"


def test_a_traceback_passes_for_no_line_of_the_log() -> None:
    try:
        raise ValueError(FORGED)
    except ValueError:
        made = logging.LogRecord("sfl.test", logging.ERROR, __file__, 1, "b", (), sys.exc_info())
    first, *rest = TextLines().format(made).split("\n")
    assert first.endswith("sfl.test: b")
    assert rest and all(line.startswith("  | ") and line.isprintable() for line in rest)


def test_long_words_are_cut_and_counted() -> None:
    assert plain("x" * 600) == "x" * 500 + "... (and 100 more characters)"
    assert plain("Größe: 3 µs – gut") == "Größe: 3 µs – gut"
    line = TextLines().format(record("x" * 100_000))
    assert len(line) < 9000 and "more characters" in line
    assert len(json.loads(JsonLines().format(record("x" * 100_000)))["message"]) < 9000
