"""What mutual TLS costs: training throughput with and without it, and how soon a refusal comes.

    python benchmarks/tls.py
    python benchmarks/tls.py --steps 40 --pairs 7 --codec compact

Pairs of runs of the same model, texts, seed and cores, one with `--tls` and one without; each pair
in the other order than the one before, so that a drift of the machine's speed falls on both. The
default codec is `none`, which sends the most bytes and so pays the most for TLS. Then the seconds
from dialling an edge to the reason that a node is told, for every kind of node that is not let in.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import tomli_w

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import ROOT, run
from benchmarks.throughput import BATCH, LENGTH, make_model, make_texts
from sfl.certificates.authority import Authority
from sfl.certificates.identity import Identity, Role
from sfl.certificates.own import OwnCertificate, settings_in
from sfl.errors import Refused
from sfl.transport.credentials import open_channel
from sfl.transport.device_link import wait_for_peer
from sfl.transport.diagnosis import why_refused

HOST = "127.0.0.1"


# -- throughput ------------------------------------------------------------------------------------


def write_config(folder: Path, options: argparse.Namespace) -> Path:
    """The run that is made again and again."""
    model, texts = folder / "model", folder / "texts.jsonl"
    make_model(model, options.hidden, options.layers, 8192)
    make_texts(texts, 256)
    path = folder / "run.toml"
    config: dict[str, Any] = {
        "run": {"rounds": 2},
        "model": {"path": str(model), "max_length": LENGTH},
        "training": {"batch_size": BATCH, "local_steps": options.steps},
        "codec": {"activation": options.codec, "gradient": options.codec},
        "data": {"train": str(texts), "eval_fraction": 0.05, "max_eval_examples": 1},
        "devices": [{"name": f"device-{n}", "cut_layer": 1} for n in range(options.devices)],
    }
    path.write_text(tomli_w.dumps(config))
    return path


def rate(config: Path, folder: Path, name: str, tls: bool) -> tuple[float, int]:
    """One run: tokens a second, and the bytes that crossed its links in training."""
    summary = run(config, folder, name, (), ("--tls",) if tls else ())
    seconds = max(device["train_seconds"] for device in summary["devices"])
    return summary["tokens_trained"] / seconds, summary["training_bytes"]


def throughput(folder: Path, options: argparse.Namespace) -> None:
    """Interleaved pairs of runs, and the ratio."""
    config = write_config(folder, options)
    print(
        f"hidden {options.hidden}, {options.layers} layers, batch {BATCH} x {LENGTH}, fp32, codec "
        f"{options.codec}, {options.devices} devices, 2 rounds of {options.steps} steps\n"
    )
    print(f"{'pair':>4}{'plain':>12}{'TLS':>12}{'TLS / plain':>14}     tokens/s")
    rates: dict[bool, list[float]] = {False: [], True: []}
    sent = 0
    for pair in range(options.pairs):
        for tls in (False, True) if pair % 2 == 0 else (True, False):
            speed, sent = rate(config, folder, f"{pair}-{'tls' if tls else 'plain'}", tls)
            rates[tls].append(speed)
        plain, secure = rates[False][-1], rates[True][-1]
        print(f"{pair + 1:4}{plain:12,.0f}{secure:12,.0f}{secure / plain:14.3f}", flush=True)
    plain, secure = (statistics.median(rates[tls]) for tls in (False, True))
    ratios = sorted(s / p for p, s in zip(rates[False], rates[True], strict=True))
    print(
        f"\nmedians: plain {plain:,.0f}, TLS {secure:,.0f} tokens/s; TLS / plain "
        f"{secure / plain:.3f} ({secure / plain - 1:+.1%}); pairs from {ratios[0]:.3f} to "
        f"{ratios[-1]:.3f}, median {statistics.median(ratios):.3f}"
    )
    print(f"{sent / 1e6:.1f} MB of activations and gradients a run")


# -- refusals --------------------------------------------------------------------------------------


class Edge:
    """A real edge that waits for its cloud; with a certificate or without."""

    def __init__(self, folder: Path, certs: Path | None) -> None:
        folder.mkdir()
        file, address = folder / "edge.toml", folder / "address"
        file.write_text(f'[edge]\ncloud = "{HOST}:1"\nconnect_timeout = 600\n')
        command = [sys.executable, "-m", "sfl.cli", "edge", str(file)]
        command += ["--address-file", str(address)]
        command += [] if certs is None else ["--certs", str(certs)]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        while not address.exists():
            if self.process.poll() is not None:
                raise SystemExit((folder / "log").read_text())
            time.sleep(0.05)
        self.address = address.read_text().strip()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


def give(authority: Authority, folder: Path, role: Role, name: str) -> OwnCertificate:
    """A certificate, unchecked: some of these nodes would not start with theirs."""
    hosts = (HOST,) if role in ("edge", "cloud") else ()
    authority.write(authority.issue(Identity(role, name), hosts), folder)
    files = settings_in(folder, name)
    return OwnCertificate(Identity(role, name), files.ca, files.cert, files.key, 0.0)


def refusal(address: str, role: Role, own: OwnCertificate | None) -> tuple[float, str]:
    """Seconds from dialling to the reason, and the reason."""
    began = time.perf_counter()
    channel = open_channel("edge", address, False, own, role)
    try:
        wait_for_peer(channel, "it", 30.0, lambda: why_refused(address, role, own))
    except Refused as error:
        return time.perf_counter() - began, str(error)
    finally:
        channel.close()
    raise SystemExit("it was let in")


def refusals(folder: Path) -> None:
    """Everything that TLS itself refuses; a name or a role is refused within a call after it."""
    authority, other = Authority.create(), Authority.create()
    give(authority, folder / "edge", "edge", "edge")
    good = give(authority, folder / "good", "device", "d")
    foreign = give(other, folder / "foreign", "device", "d")
    half = give(other, folder / "half", "device", "d")
    half.ca.write_bytes(authority.cert_pem)  # trusts the edge, is not trusted by it
    edges = [Edge(folder / "secure", folder / "edge"), Edge(folder / "plain", None)]
    secure, plain = (edge.address for edge in edges)
    cases: list[tuple[str, str, Role, OwnCertificate | None]] = [
        ("no certificate, plaintext to TLS", secure, "edge", None),
        ("both of another CA", secure, "edge", foreign),
        ("its own certificate of another CA", secure, "edge", half),
        ("an edge where a cloud should be", secure, "cloud", good),
        ("another host than the certificate's", secure.replace(HOST, "localhost"), "edge", good),
        ("TLS to plaintext", plain, "edge", good),
    ]
    try:
        print(f"\n{'seconds':>7}  refused, and what it is told")
        for what, address, role, own in cases:
            seconds, reason = refusal(address, role, own)
            print(f"{seconds:7.2f}  {what}: {reason.replace(str(folder), '...')}")
    finally:
        for edge in edges:
            edge.close()


def main() -> None:
    """Both parts, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="steps a round, of two rounds")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--codec", default="none", help="of activations and gradients")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if options.pairs:
            throughput(Path(temporary), options)
        refusals(Path(temporary))


if __name__ == "__main__":
    main()
