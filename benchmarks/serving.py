"""Answers over a cut, in batches of many adapters, over slow links; beside what there was before.

    python benchmarks/serving.py --sessions 1 4 16 64      # about 10 minutes on two quiet cores
    python benchmarks/serving.py --short                   # about 3
    python benchmarks/serving.py --only links --exit FOLDER   # of `sfl draft`, at cut 1

An edge is a process of `sfl edge`. A device is a process with the blocks, the talker and the link
of `sfl serve --device`, without its endpoint. A third kind has the whole model and no link. Each
computes on one thread, in float32. By default the model is that of examples/smollm2 (its README
says how it is made). Adapters have random values, rank 8, over all linear layers.

sessions    tokens a second of so many conversations at once, from the first question to the last
            token, with an adapter each of 16 and with none; and at an edge whose batch is 1, as
            Petals has it. In turns, medians.
cpu         CPU time a token of one conversation, both sides together, beside the whole model in
            one process: `generate` of transformers, and one span of all blocks (`loop`). In turns.
links       milliseconds from one token to the next over links with a delay, each once. The aim is
            what `loop` takes, the link's round trip as a byte measures it, and 3 ms.
alike       the same prompts one by one, 4 and 24 at a time: whose tokens differ.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import ROOT, needed
from benchmarks.served.nodes import Node, devices, edge, link, whole
from benchmarks.served.playing import (
    VANILLA,
    Fleet,
    Played,
    alone,
    chat_prompts,
    make_adapters,
    short_prompts,
)

MODEL = ROOT / "examples" / "smollm2" / "model"
ADAPTERS = 16
MANY = 16
"""More conversations than that say half as many tokens each, so that the whole takes minutes."""
PARTS = "sessions", "cpu", "links", "alike"


@dataclass(frozen=True, slots=True)
class Place:
    """Everything that runs: an edge, one that computes one conversation at a time, devices."""

    model: Path
    fleet: Fleet
    edge: Node
    address: str
    single: Node
    single_address: str
    whole: Node

    def play(
        self,
        talks: Sequence[tuple[str, Sequence[int]]],
        tokens: int,
        together: int = 1,
        serve: Mapping[str, Any] = VANILLA,
        address: str = "",
    ) -> Played:
        """At the edge, perhaps over another address."""
        return self.fleet.play(self.edge, address or self.address, talks, tokens, together, serve)

    def play_singly(
        self, talks: Sequence[tuple[str, Sequence[int]]], tokens: int, together: int
    ) -> Played:
        """At the edge whose batch is 1."""
        return self.fleet.play(self.single, self.single_address, talks, tokens, together)


def main() -> None:
    """Start all, and print a table for each part."""
    options = asked()
    needed(options.model)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        place = opened(options, Path(name), stack)
        say(f"all is loaded after {time.monotonic() - began:.0f} s")
        parts: dict[str, Callable[[Place, argparse.Namespace], None]] = {
            "sessions": sessions,
            "cpu": cpu,
            "links": links,
            "alike": alike,
        }
        for part in options.only:
            parts[part](place, options)
            say(f"{part} is done after {time.monotonic() - began:.0f} s in all")


def asked() -> argparse.Namespace:
    """What the command line says; `--short` lowers what it does not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--exit", type=Path, help="a folder of `sfl draft` for cut 1")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sessions", type=int, nargs="+", default=None)
    parser.add_argument("--links", type=float, nargs="+", default=None, help="round trips in ms")
    parser.add_argument("--turns", type=int, default=None)
    parser.add_argument("--tokens", type=int, default=None, help="of an answer")
    parser.add_argument("--devices", type=int, default=4, help="processes of devices")
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    short = {"sessions": [1, 4, 16], "links": [0.0, 20.0], "turns": 1, "tokens": 12}
    long = {"sessions": [1, 4, 16, 64], "links": [0.0, 5.0, 20.0, 100.0], "turns": 3, "tokens": 24}
    for name, value in (short if options.short else long).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def opened(options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> Place:
    """Start what is needed. The edges hold all blocks, so that a cut at 0 is served as well."""
    serve = {
        "adapters": make_adapters(options.model, folder, ADAPTERS),
        "cut_layer": 0,
        "kv_memory": "2GB",
        "batch": max(MANY, *options.sessions),
    }
    say("starting an edge, one with batch = 1, devices, and the whole model")
    first, address = stack.enter_context(edge(folder, "edge", options.model, serve))
    single, single_address = stack.enter_context(
        edge(folder, "single", options.model, {**serve, "batch": 1})
    )
    fleet = Fleet(stack.enter_context(devices(folder, options.devices, options.model)))
    node = stack.enter_context(whole(folder, options.model))
    return Place(options.model, fleet, first, address, single, single_address, node)


# -- many conversations ----------------------------------------------------------------------------


def sessions(place: Place, options: argparse.Namespace) -> None:
    """Tokens a second, by how many at once."""
    prompts = short_prompts(place.model, max(*options.sessions, 4))
    found: dict[tuple[int, str], list[Played]] = {}

    def one(count: int, way: str, tokens: int) -> Played:
        talks = [
            ("base" if way == "no adapter" else f"a{n % ADAPTERS}", ids)
            for n, ids in enumerate(prompts[: max(count, 4)])
        ]
        if way == "batch = 1":
            return place.play_singly(talks, tokens, count)
        return place.play(talks, tokens, count)

    for turn in range(options.turns + 1):
        for count in options.sessions:
            for way in ("adapters", "no adapter", "batch = 1"):
                if way == "batch = 1" and not 1 < count <= MANY:
                    continue
                few = options.tokens // (1 if count <= MANY and way != "batch = 1" else 2)
                played = one(count, way, few if turn else 2)  # the first one warms up
                if turn:
                    found.setdefault((count, way), []).append(played)
                    say(f"turn {turn}, {count} at once, {way}: {played.rate:.1f} tokens/s")
    _show_sessions(options.sessions, found)


def _show_sessions(counts: Sequence[int], found: dict[tuple[int, str], list[Played]]) -> None:
    """`times` is over one conversation after another, `of no adapter` an aim of 0.8."""

    def rate(count: int, way: str) -> float | None:
        played = found.get((count, way))
        return None if played is None else median(one.rate for one in played)

    print("\n| at once | an adapter each | times | no adapter | of no adapter | batch = 1 | ms |")
    print("|---|---|---|---|---|---|---|")
    first = rate(min(counts), "adapters") or 1.0
    for count in counts:
        own, base, single = (rate(count, way) for way in ("adapters", "no adapter", "batch = 1"))
        assert own is not None and base is not None
        between = median(one.between for one in found[count, "adapters"])
        print(
            f"| {count} | {own:.1f} | {own / first:.2f} | {base:.1f} | {own / base:.2f} | "
            f"{'-' if single is None else f'{single:.1f}'} | {between:.0f} |",
            flush=True,
        )
    print("tokens/s; times those of one by one with adapters; ms from one token to the next\n")


# -- one conversation ------------------------------------------------------------------------------


def cpu(place: Place, options: argparse.Namespace) -> None:
    """CPU time a token of both sides, beside the whole model's."""
    ids, tokens = short_prompts(place.model, 1)[0], 2 * options.tokens
    found: dict[str, list[float]] = {}
    for turn in range(options.turns + 1):
        count = tokens if turn else 2
        played = place.play([("base", ids)], count)
        spent = {"edge": played.edge_cpu, "device": played.device_cpu}
        spent["split"] = sum(spent.values())
        for way in ("generate", "loop"):
            if not turn:
                alone(place.whole, way, ids, 0)
            said, spent[way] = alone(place.whole, way, ids, count)
            if said.ids != played.said[0].ids:
                say(f"{way} says something else than the split")
        if turn:
            for name, seconds in spent.items():
                found.setdefault(name, []).append(1e3 * seconds / count)
            say(f"turn {turn}: " + ", ".join(f"{n} {v[-1]:.1f}" for n, v in found.items()))
    own = {name: median(values) for name, values in found.items()}
    print("\n| | CPU ms a token | split over it |\n|---|---|---|")
    for name in ("edge", "device", "split", "generate", "loop"):
        over = f"{own['split'] / own[name]:.2f}" if name in ("generate", "loop") else "-"
        print(f"| {name} | {own[name]:.1f} | {over} |", flush=True)
    print()


def links(place: Place, options: argparse.Namespace) -> None:
    """Milliseconds a token by round trip, for each way to answer; tokens a round trip."""
    ways: dict[str, Mapping[str, Any]] = {
        "cut 1": VANILLA,
        "cut 1, U-shaped": {"cut_layer": 1, "topology": "u_shaped"},
        "all on the edge (cut 0)": {"cut_layer": 0},
        "lookup, 4": {**VANILLA, "draft": "lookup", "draft_tokens": 4},
    }
    if options.exit is not None:
        ways |= {
            f"exit, {most}": {**VANILLA, "draft": f"exit:{options.exit}", "draft_tokens": most}
            for most in (2, 4)
        }
    chats = chat_prompts(place.model)
    talks, tokens = [("base", ids) for ids in chats], options.tokens + options.tokens // 3
    computing = _whole_times(place, chats, tokens)
    found: dict[str, list[Played]] = {}
    trips = []
    for milliseconds in options.links:
        with link(place.address, milliseconds) as (address, measured):
            trips.append(measured)
            for name, serve in ways.items():
                played = place.play(talks, tokens, serve=serve, address=address)
                found.setdefault(name, []).append(played)
                say(f"{milliseconds:g} ms, {name}: {played.between:.1f} ms a token")
    _show_links(options.links, trips, computing, found)


def _whole_times(place: Place, chats: Sequence[Sequence[int]], tokens: int) -> dict[str, float]:
    """Milliseconds a token of the whole model, each way."""
    found: dict[str, list[float]] = {"generate": [], "loop": []}
    for way in found:
        alone(place.whole, way, chats[0], 0)
    for ids in [*chats, *chats]:
        for way, times in found.items():
            times.append(alone(place.whole, way, ids, tokens)[0].between)
    return {way: median(times) for way, times in found.items()}


def _show_links(
    given: Sequence[float],
    trips: Sequence[float],
    computing: Mapping[str, float],
    found: Mapping[str, Sequence[Played]],
) -> None:
    def row(name: str, values: Sequence[float], last: str = "-") -> None:
        print(f"| {name} | " + " | ".join(f"{v:.1f}" for v in values) + f" | {last} |", flush=True)

    print("\n| ms a token | " + " | ".join(f"{ms:g} ms" for ms in given) + " | a trip (kept) |")
    print("|---|" + "---|" * (len(given) + 1))
    row("round trip, measured", trips)
    row("aim: loop + round trip + 3", [computing["loop"] + trip + 3 for trip in trips])
    for name, played in found.items():
        tokens, many = (sum(getattr(p, n) for p in played) for n in ("tokens", "trips"))
        drafted, accepted = (sum(getattr(p, n) for p in played) for n in ("drafted", "accepted"))
        kept = f" ({accepted / drafted:.2f})" if drafted else ""
        row(name, [one.between for one in played], f"{tokens / many:.2f}{kept}")
    for way, milliseconds in computing.items():
        row(f"whole model on the device, {way}", [milliseconds] * len(given))
    for ms, trip, own in zip(given, trips, found["cut 1"], strict=True):
        over = own.between - computing["loop"] - trip
        wins = "quicker" if own.between > computing["generate"] else "slower"
        print(
            f"{ms:g} ms: {over:+.1f} ms over computing and the link; `generate` on a device that "
            f"holds the whole model is {wins}, {computing['generate']:.1f} to {own.between:.1f} ms"
        )
    print(flush=True)


# -- alone and together ----------------------------------------------------------------------------


def alike(place: Place, options: argparse.Namespace) -> None:
    """Whose tokens differ in a batch from those alone."""
    count = 4 if options.short else 24
    prompts = short_prompts(place.model, count)
    talks = [(f"a{n % ADAPTERS}", ids) for n, ids in enumerate(prompts)]
    own = [one.ids for one in place.play(talks, options.tokens).said]
    say(f"{count} prompts, one by one: done")
    print("\n| at a time | answers that are the same | tokens before the first difference |")
    print("|---|---|---|")
    for together in (4, count) if count > 4 else (4,):
        answers = [one.ids for one in place.play(talks, options.tokens, together).said]
        pairs = list(zip(own, answers, strict=True))
        places = [
            next(n for n, (a, b) in enumerate(zip(x, y, strict=True)) if a != b)
            for x, y in pairs
            if x != y
        ]
        print(
            f"| {together} | {count - len(places)} of {count} | "
            f"{', '.join(map(str, sorted(places))) or '-'} |",
            flush=True,
        )
    print(f"{options.tokens} tokens each, of {ADAPTERS} adapters in turn\n", flush=True)


def say(text: str) -> None:
    """How far it is; tables alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
