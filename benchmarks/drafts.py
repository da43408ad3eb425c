"""Tokens a round trip with drafts, over a real edge and device in this process.

    python benchmarks/drafts.py                                  # stories260K from ../shared
    python benchmarks/drafts.py --topology u_shaped
    python benchmarks/drafts.py --model smollm2 --exit exit --tokens 48 --sources lookup exit

Each row is a source of drafts, and how many tokens it guesses at a time. `a trip` counts tokens for
each round trip, `kept` the share of guesses that were right. CPU time is that of both sides, for
each token. `same` counts answers that are those without a draft. Without `--exit` one is trained;
without `--small` one block over the embedding is, as a model of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import SHARED
from device_agent.serving.node import ServingDevice
from device_agent.serving.talk import Wish
from edge_server.serving import ServingEdge
from sfl.config.serve import ServeDeviceConfig, ServeEdgeConfig
from sfl.data.tokenizer import load_tokenizer
from sfl.serving.sampling import GREEDY, Sampling

PROMPTS = (
    "Once upon a time",
    "One day, a little girl named Lily",
    "Tom and his dog",
    "The big red ball",
    "Ben saw a bird and",
    "Two friends went to the park",
)
SOURCES = "lookup", "exit", "model"
SAMPLINGS = (GREEDY, Sampling(0.8, 1.0, seed=1))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "stories260k")
    parser.add_argument("--exit", type=Path, help="a folder of `sfl draft`")
    parser.add_argument("--small", type=Path, help="a small model with the same tokens")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--cut-layer", type=int, default=1)
    parser.add_argument("--topology", default="vanilla", choices=["vanilla", "u_shaped"])
    parser.add_argument("--tokens", type=int, default=96, help="of each answer")
    parser.add_argument("--drafted", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(
            _table(options, [_source(options, own, Path(folder)) for own in options.sources])
        )


def _source(options: argparse.Namespace, kind: str, folder: Path) -> str:
    """A draft as a device's file has it; trained where it has to be."""
    given = {"lookup": None, "exit": options.exit, "model": options.small}[kind]
    if kind == "lookup" or given is not None:
        return kind if given is None else f"{kind}:{given}"
    from benchmarks.served.small import make_small
    from sfl.cli.draft import Wanted, draft_for_model

    begin, to = time.process_time(), folder / kind
    if kind == "exit":
        draft_for_model(str(options.model), None, options.cut_layer, to, Wanted())
    else:
        to.mkdir()
        to = make_small(options.model, to)
    print(f"{kind}: trained in {time.process_time() - begin:.0f} s of CPU time\n", flush=True)
    return f"{kind}:{to}"


async def _table(options: argparse.Namespace, sources: Sequence[str]) -> None:
    ids = _ids(options.model)
    print("| draft | drafted | temperature | a trip | kept | CPU ms | same |")
    print("|---|---|---|---|---|---|---|", flush=True)
    async with _edge(options) as address:
        for sampling in SAMPLINGS:
            plain = await _row(options, address, "none", 1, sampling, ids, None)
            for source in sources:
                for drafted in options.drafted:
                    await _row(options, address, source, drafted, sampling, ids, plain)


def _ids(model: Path) -> list[tuple[int, ...]]:
    tokenizer = load_tokenizer(model)
    return [(*tokenizer.prefix, *ids) for ids in tokenizer.encode(PROMPTS)]


async def _row(
    options: argparse.Namespace,
    address: str,
    source: str,
    drafted: int,
    sampling: Sampling,
    prompts: Sequence[tuple[int, ...]],
    plain: list[list[int]] | None,
) -> list[list[int]]:
    """Print what one source brings; the answers."""
    device = ServingDevice(_device_config(options, address, source, drafted), 1, False)
    answers = []
    try:
        await device.talker.link()
        begin = time.process_time()
        for number, ids in enumerate(prompts):
            wish = Wish(f"{drafted}-{number}", ids, options.tokens, sampling=sampling)
            answers.append([token async for token in device.talker.answer(wish)])
        spent = time.process_time() - begin
    finally:
        await device.talker.close()
    spoken = device.talker.spoken
    kept = f"{spoken.accepted / spoken.drafted:.2f}" if spoken.drafted else "-"
    same = sum(map(list.__eq__, answers, plain or answers))
    print(
        f"| {source.partition(':')[0]} | {drafted if plain else '-'} | {sampling.temperature:g} | "
        f"{spoken.tokens / spoken.round_trips:.2f} | {kept} | "
        f"{1e3 * spent / spoken.tokens:.1f} | {same} of {len(prompts)} |",
        flush=True,
    )
    return answers


@asynccontextmanager
async def _edge(options: argparse.Namespace) -> AsyncIterator[str]:
    """Its address, while it serves the model."""
    with tempfile.TemporaryDirectory() as spill:
        table = {
            "edge": {"model": str(options.model)},
            "serve": {
                "cut_layer": options.cut_layer,
                "max_tokens": options.tokens,
                "spill_dir": spill,
            },
        }
        edge = ServingEdge(ServeEdgeConfig.model_validate(table), 1, insecure=False)
        async with edge.port() as address:
            yield address


def _device_config(
    options: argparse.Namespace, address: str, source: str, drafted: int
) -> ServeDeviceConfig:
    return ServeDeviceConfig.model_validate(
        {
            "device": {"name": "device", "model": str(options.model), "edge": address},
            "serve": {
                "cut_layer": options.cut_layer,
                "topology": options.topology,
                "draft": source,
                "draft_tokens": drafted,
                "exact": options.exact,
                "context": 512,
            },
        }
    )


if __name__ == "__main__":
    main()
