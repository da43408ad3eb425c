"""Peak memory of a device that answers at a cut, beyond its imports, beside the whole model's.

    python benchmarks/serving_memory.py                    # examples/smollm2's model at cut 1
    python benchmarks/serving_memory.py --model FOLDER --cut-layer 2 --tokens 200

A device is a real process of `sfl serve --device` with its endpoint, at a real edge, and answers a
prompt over HTTP. The whole model is a process that answers the same prompt: with one span of all
blocks in sfl's own code, and with `generate` of transformers. All are float32, one thread. A peak
is the highest resident size that the kernel has seen (VmHWM). Imports are that of a fresh process
that only imports what the other one does. The aim is 20% of the whole model's in sfl's own code.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import tomli_w

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.device_memory import MB, highest
from benchmarks.runs import ROOT, needed
from benchmarks.served.nodes import Node, edge, whole
from sfl.metrics.memory import memory_use
from sfl.node.process import keep_heap, quiet_environment

MODEL = ROOT / "examples" / "smollm2" / "model"
PROMPT = "Why does a kettle sing before the water boils? Tell it to a child, in a few sentences."
IMPORTS = {
    "device": (
        "sfl.cli.app",
        "device_agent.serving.node",
        "transformers.tokenization_utils_tokenizers",
    ),
    "loop": ("benchmarks.served.whole",),
    "generate": ("benchmarks.served.whole", "transformers.generation.utils"),
}
"""What each kind of process imports, beside the model's own code."""


def main() -> None:
    """Measure, one process after another, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--cut-layer", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--imports", choices=IMPORTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.imports:
        print(imported(options.imports, options.model))
        return
    needed(options.model)
    cut = f"device, cut {options.cut_layer}"
    ways: dict[str, tuple[str, dict[str, Any]]] = {
        cut: ("device", {}),
        f"{cut}, embedding in memory": ("device", {"embedding": "memory"}),
        f"{cut}, U-shaped": ("device", {"topology": "u_shaped"}),
        "whole model, sfl's own code": ("loop", {}),
        "whole model, generate": ("generate", {}),
    }
    found: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for way, (kind, changes) in ways.items():
            print(f"{way} ...", file=sys.stderr, flush=True)
            folder = Path(name) / str(len(found))
            folder.mkdir()
            before = of_imports(kind, options.model)
            peak = (
                device_peak(options, folder, changes)
                if kind == "device"
                else whole_peak(options, folder, kind)
            )
            found[way] = before, peak
    show(found)


def show(found: dict[str, tuple[float, float]]) -> None:
    """Megabytes, and the share of the whole model's."""
    print("\n| | imports | peak | beyond imports | of whole, own code | of whole, generate |")
    print("|---|---|---|---|---|---|")
    own, theirs = (found[way][1] - found[way][0] for way in list(found)[-2:])
    for way, (before, peak) in found.items():
        beyond = peak - before
        print(
            f"| {way} | {before:.0f} MB | {peak:.0f} MB | {beyond:.0f} MB | {beyond / own:.0%} | "
            f"{beyond / theirs:.0%} |"
        )


def of_imports(kind: str, model: Path) -> float:
    """Megabytes of a fresh process with the imports of that kind."""
    command = [sys.executable, __file__, "--imports", kind, "--model", str(model)]
    return float(subprocess.check_output(command, text=True, cwd=ROOT, stderr=subprocess.DEVNULL))


def imported(kind: str, model: Path) -> float:
    """The inside of that process."""
    quiet_environment()
    keep_heap()
    modeling = importlib.import_module("sfl.models.modeling")
    if kind == "device":
        modeling.leave_out_compiler()
    for name in IMPORTS[kind]:
        importlib.import_module(name)
    modeling.import_modeling(json.loads((model / "config.json").read_text())["model_type"])
    return memory_use().peak_resident / MB


def device_peak(options: argparse.Namespace, folder: Path, changes: dict[str, Any]) -> float:
    """Megabytes of a device's process, once it has answered."""
    topology = changes.get("topology", "vanilla")
    embedding = changes.get("embedding", "auto")
    file, log = folder / "device.toml", folder / "device.log"
    with edge(folder, "edge", options.model, {"cut_layer": options.cut_layer}) as (_, address):
        device = {"name": "d", "model": str(options.model), "edge": address, "threads": 1}
        answers = {
            "cut_layer": options.cut_layer,
            "topology": topology,
            "listen": "127.0.0.1:0",
        }
        tables = {"device": {**device, "embedding": embedding}, "serve": answers}
        file.write_text(tomli_w.dumps(tables))
        node = Node(["sfl.cli", "serve", "--device", str(file)], log)
        try:
            ask(listening(node, log), options.tokens)
            return highest(node.pid) / MB
        finally:
            node.close()


def listening(node: Node, log: Path) -> str:
    """Where its endpoint is. Raises SystemExit where it ends before."""
    while not (said := re.search(r"chat at http://([^/]+)/", log.read_text())):
        if not highest(node.pid):
            raise SystemExit(log.read_text())
        time.sleep(0.05)
    return said[1]


def ask(address: str, tokens: int) -> None:
    """An answer of the endpoint."""
    said = [{"role": "user", "content": PROMPT}]
    body = {"model": "base", "messages": said, "max_tokens": tokens, "temperature": 0}
    request = urllib.request.Request(
        f"http://{address}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=300) as answer:
        count = json.load(answer)["usage"]["completion_tokens"]
    print(f"    {count} tokens were answered", file=sys.stderr, flush=True)


def whole_peak(options: argparse.Namespace, folder: Path, way: str) -> float:
    """Megabytes of the whole model's process, once it has answered."""
    from sfl.data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(options.model)
    ids = [*tokenizer.prefix, *tokenizer.encode([PROMPT])[0]]
    with whole(folder, options.model) as node:
        for tokens in (0, options.tokens):
            node.ask({"way": way, "ids": ids, "tokens": tokens})
            node.told()
        return highest(node.pid) / MB


if __name__ == "__main__":
    main()
