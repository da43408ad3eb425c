"""Cuts that move every round, in real processes: the same adapter as with cuts that stay.

    python benchmarks/moving_cut.py                      # families x topologies, and kills
    python benchmarks/moving_cut.py --families llama --rounds 6 --kills 0

Each case is `sfl run` with a cloud, an edge and three devices, codec none. First the cuts stay.
Then `planner.policy = "random"` draws new ones in every round. Then the same again, while a device
or the edge is killed (SIGKILL) just as a round begins in which its cut moves; `sfl run` starts it
again. `same` says whether the adapter has the fixed run's bits. Bytes and seconds of a move are the
edge's own count, moments only; the seconds end when both sides can compute with the new cut.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import tomli_w

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import ROOT, needed
from benchmarks.throughput import TOKENIZER, make_texts

FAMILIES = ("llama", "gpt2", "qwen3")
TOPOLOGIES = ("vanilla", "u_shaped")
LAYERS, HIDDEN, VOCABULARY = 6, 128, 2048
DEVICES = ("d0", "d1", "d2")
MOVED = re.compile(r"block ([\d, ]+) changed sides, (\d+) bytes of moments, ([\d.]+) s")
DELAYS = (0.0, 0.01, 0.03, 0.1)
"""Seconds after a round's first line at which somebody is killed, one after the other."""


@dataclass(frozen=True, slots=True)
class Moved:
    """One device's move: blocks, bytes of moments, seconds."""

    blocks: int
    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a run: its adapter's digest, what moved, who was killed, seconds in all."""

    digest: str
    moves: tuple[Moved, ...]
    kills: int
    seconds: float


def make_family(folder: Path, family: str) -> None:
    """A random small model of a family, with the quickstart's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    common = {"vocab_size": VOCABULARY, "tie_word_embeddings": True}
    own: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 4 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    }
    if family == "gpt2":
        own = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 512}
    if family == "qwen3":
        own["head_dim"] = 32
    config = AutoConfig.for_model(family, **common, **own)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TOKENIZER / name, folder / name)


def settings(
    model: Path, texts: Path, folder: Path, topology: str, policy: str, rounds: int
) -> dict[str, Any]:
    """A run's file."""
    tail = {} if topology == "vanilla" else {"tail_layers": 1, "tail_range": [0, 2]}
    cache = str(folder / "cache")
    devices = [
        {"name": name, "cut_layer": 1, "cut_range": [1, 3], "cache_dir": cache, **tail}
        for name in DEVICES
    ]
    return {
        "run": {"id": "r", "rounds": rounds, "topology": topology, "output_dir": str(folder)},
        "model": {"path": str(model), "max_length": 32},
        "training": {"batch_size": 4, "local_steps": 3},
        "codec": {"activation": "none", "gradient": "none"},
        "data": {"train": str(texts), "eval_fraction": 0.05, "blocks": "first"},
        "evaluation": {"every": rounds, "full": False, "max_examples": 2},
        "planner": {"policy": policy},
        "launch": {"restarts": 50},
        "edge": {"cache_dir": cache},
        "devices": devices,
    }


def nodes_of(process: subprocess.Popen[str]) -> dict[str, psutil.Process]:
    """Children of `sfl run` by the names in their titles."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            words = " ".join(child.cmdline()).split()
            if words[:1] == ["sfl"] and len(words) > 2:
                found[words[2]] = child
    return found


def played(folder: Path, values: dict[str, Any], kills: int) -> Result:
    """One run; in each round somebody is killed until `kills` have been. Raises SystemExit."""
    began = time.perf_counter()
    path = folder / "run.toml"
    path.write_text(tomli_w.dumps(values))
    command = [sys.executable, "-m", "sfl.cli", "run", str(path)]
    with (folder / "said.txt").open("w+") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT, text=True
        )
        done = _kill(process, folder / "r", kills) if kills else 0
        if process.wait() != 0:
            said.seek(0)
            raise SystemExit(said.read())
    log = (folder / "r" / "logs" / "edge.log").read_text()
    moves = tuple(
        Moved(len(found[1].split(",")), int(found[2]), float(found[3]))
        for found in MOVED.finditer(log)
    )
    adapter = (folder / "r" / "adapter" / "adapter_model.safetensors").read_bytes()
    digest = hashlib.sha256(adapter).hexdigest()
    return Result(digest, moves, done, time.perf_counter() - began)


def _kill(process: subprocess.Popen[str], run: Path, kills: int) -> int:
    """Kill one node a round, as it begins: devices and the edge in turns."""
    victims, done = (*DEVICES, "edge"), 0
    for round_ in _rounds(process, run):
        if round_ < 2 or done >= kills:
            continue
        time.sleep(DELAYS[done % len(DELAYS)])
        node = nodes_of(process).get(victims[done % len(victims)])
        with contextlib.suppress(psutil.Error):
            if node is not None:
                node.send_signal(signal.SIGKILL)
                done += 1
    return done


def _rounds(process: subprocess.Popen[str], run: Path) -> Iterator[int]:
    """Rounds as the cloud's log tells that they begin."""
    seen = 0
    while process.poll() is None:
        with contextlib.suppress(OSError):
            log = (run / "logs" / "cloud.log").read_text()
            for found in re.findall(r"sfl\.cloud: round (\d+) of", log)[seen:]:
                seen += 1
                yield int(found)
        time.sleep(0.005)


def case(folder: Path, family: str, topology: str, rounds: int, kills: int) -> list[str]:
    """A line for each way."""
    model, texts = folder / family, folder / "texts.jsonl"
    if not model.exists():
        make_family(model, family)
    if not texts.exists():
        make_texts(texts, 96)
    fixed, lines = "", []
    for way, policy, count in (
        ("stays", "fixed", 0),
        ("moves", "random", 0),
        ("killed", "random", kills),
    ):
        if way == "killed" and not kills:
            continue
        with tempfile.TemporaryDirectory(dir=folder) as name:
            values = settings(model, texts, Path(name), topology, policy, rounds)
            found = played(Path(name), values, count)
        fixed = fixed or found.digest
        lines.append(row(family, topology, way, found, found.digest == fixed))
        print(lines[-1], flush=True)
    return lines


def row(family: str, topology: str, way: str, found: Result, same: bool) -> str:
    """As a line of the table."""
    blocks = sum(move.blocks for move in found.moves)
    per_block = [move.num_bytes / move.blocks for move in found.moves if move.num_bytes]
    size = f"{median(per_block):,.0f}" if per_block else "-"
    seconds = f"{median(m.seconds for m in found.moves):.3f}" if found.moves else "-"
    said = "yes" if same else "NO"
    return (
        f"| {family} | {topology} | {way} | {len(found.moves)} | {blocks} | {size} | {seconds} "
        f"| {found.kills} | {found.digest[:12]} | {said} |"
    )


HEAD = (
    "| family | topology | cuts | moves | blocks | bytes a block | s a move | kills | adapter "
    "| same |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table; the exit code is 1 where a bit differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES, choices=TOPOLOGIES)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--kills", type=int, default=4, help="in the last of the three ways")
    own = parser.parse_args(arguments)
    needed(TOKENIZER)
    print(HEAD, flush=True)
    with tempfile.TemporaryDirectory() as name:
        lines = [
            line
            for family in own.families
            for topology in own.topologies
            for line in case(Path(name), family, topology, own.rounds, own.kills)
        ]
    different = sum(line.endswith("NO |") for line in lines)
    print(json.dumps({"runs": len(lines), "different": different}))
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
