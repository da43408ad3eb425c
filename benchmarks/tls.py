"""What mutual TLS costs: training throughput with and without it, and how soon a refusal comes.

    python benchmarks/tls.py
    python benchmarks/tls.py --steps 40 --pairs 7 --codec compact
    python benchmarks/tls.py --pairs 0     # the signatures and the refusals alone

Pairs of runs of the same model, texts, seed and cores, one with `--tls` and one without; each pair
in the other order than the one before, so that a drift of the machine's speed falls on both. The
default codec is `none`, which sends the most bytes and so pays the most for TLS. Then the seconds
from dialling an edge to the reason that a node is told, for every kind of node that is not let in,
and what the edge's log says of it. Between the two, what a device's signatures cost: of a join, a
report and adapters of several sizes, signed by the device and checked by the cloud.
"""

from __future__ import annotations

import argparse
import datetime as dt
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import numpy as np
import tomli_w
from cryptography import x509

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import ROOT, run
from benchmarks.throughput import BATCH, LENGTH, full_length, make_model, make_texts
from sfl.errors import Refused
from sfl.node.certificates import authority as authority_module
from sfl.node.certificates.authority import Authority
from sfl.node.certificates.identity import Identity, Role, server_name
from sfl.node.certificates.own import OwnCertificate, settings_in
from sfl.node.certificates.signing import Trust
from sfl.transport.dialling import wait_for_peer
from sfl.transport.frames.chunks import adapter_bytes
from sfl.transport.frames.wire import EDGE_LIST_FILES
from sfl.transport.security.credentials import open_channel
from sfl.transport.security.diagnosis import why_refused
from sfl.transport.security.signed import DeviceSignatures, SignatureCheck
from sfl.v1 import cloud_pb2, edge_pb2, tensor_pb2

HOST = "127.0.0.1"

Refusal = tuple[float, str]


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
        "data": {"train": str(texts), "eval_fraction": 0.05, **full_length()},
        "evaluation": {"max_examples": 1, "full": False},
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


# -- signatures ------------------------------------------------------------------------------------


def spent(work: Callable[[], object], least: float = 0.5) -> float:
    """Seconds that a piece of work takes: the median over at least so long."""
    times: list[float] = []
    end = time.perf_counter() + least
    while time.perf_counter() < end or len(times) < 3:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


LOADING = """
import time, psutil
import sfl.transport.device.link
before, began = psutil.Process().memory_info().rss, time.perf_counter()
import sfl.node.certificates.signing
seconds = time.perf_counter() - began
print(f"{(psutil.Process().memory_info().rss - before) / 1e6:.1f} MB, {seconds:.2f} s")
"""


def loading() -> str:
    """What the package takes in a device that has everything else: memory and seconds."""
    command = [sys.executable, "-c", LOADING]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


def signatures(folder: Path) -> None:
    """What is signed and checked, one after the other as in a run."""
    authority = Authority.create()
    device = DeviceSignatures("d", give(authority, folder / "signs", "device", "d"))
    check = SignatureCheck("run", "edge", Trust(authority.cert_pem))
    challenge = edge_pb2.Challenge(run_id="run", edge="edge", nonce=check.challenge)
    print(f"\n{'device':>10}{'cloud':>10}  milliseconds, by the device to sign, the cloud to check")

    def join() -> None:
        check.join(cloud_pb2.DeviceJoin(device="d", proof=device.proof(challenge)))
        check.admitted("d")

    sign = spent(lambda: device.proof(challenge))
    _row(sign, spent(join) - sign, "a join, with the certificate")
    join()
    report = tensor_pb2.RoundReport(round=1, device="d", snapshot="x" * 4000, spans="y" * 20_000)
    sign = spent(lambda: device.report(report))

    def reported() -> None:
        device.report(report)
        check.report(report)

    _row(sign, spent(reported) - sign, "a report of 24 kB")
    for size in (300_000, 10_000_000, 100_000_000):
        values = {"a": np.zeros(size // 4, np.float32)}
        file = folder / "part"
        file.write_bytes(adapter_bytes(values))
        header = tensor_pb2.AdapterHeader(round=1, device="d", side="device")
        sign = spent(partial(device.update, header, values))

        def updated(header: Any = header, values: Any = values, file: Path = file) -> None:
            device.update(header, values)
            check.update(header, file)

        _row(sign, spent(updated) - sign, f"an update of {size / 1e6:g} MB")
    print(f"\nloading the package that signs, once a device: {loading()}")


def _row(sign: float, check: float, what: str) -> None:
    print(f"{1000 * sign:10.2f}{1000 * check:10.2f}  {what}")


# -- refusals --------------------------------------------------------------------------------------


class Edge:
    """A real edge that waits for its cloud; with a certificate or without."""

    def __init__(self, folder: Path, certs: Path | None) -> None:
        folder.mkdir()
        self.folder = folder
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

    def log(self) -> str:
        """What it has written so far, less its lines on the cloud that it waits for."""
        lines = (self.folder / "log").read_text().splitlines(keepends=True)
        return "".join(line for line in lines if "waiting for" not in line)

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


def refusal(address: str, role: Role, own: OwnCertificate | None) -> Refusal:
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


def call_refusal(address: str, own: OwnCertificate | None, ca: Path, name: str) -> Refusal:
    """The same for a call: asks for the files of device `name`, without a certificate or with."""
    began = time.perf_counter()
    if own is None:
        credentials = grpc.ssl_channel_credentials(ca.read_bytes())
        server = (("grpc.ssl_target_name_override", server_name("edge", HOST)),)
        channel = grpc.secure_channel(address, credentials, options=server)
    else:
        channel = open_channel("edge", address, False, own, "edge")
    try:
        EDGE_LIST_FILES.stub(channel)(edge_pb2.FilesRequest(device=name), timeout=30.0)
    except grpc.RpcError as error:
        return time.perf_counter() - began, str(error.details())
    finally:
        channel.close()
    raise SystemExit("it was let in")


def give_expired(authority: Authority, folder: Path) -> OwnCertificate:
    """A device's certificate that ended yesterday; a node would not even dial with it."""

    def dates(builder: x509.CertificateBuilder, _: dt.timedelta) -> x509.CertificateBuilder:
        now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
        builder = builder.not_valid_before(now - 2 * day).not_valid_after(now - day)
        return builder.serial_number(x509.random_serial_number())

    with mock.patch.object(authority_module, "_dated", dates):
        return give(authority, folder, "device", "d")


def refusals(folder: Path) -> None:
    """Everybody whom TLS itself refuses, and those whom the doorkeeper does, once they call."""
    authority, other = Authority.create(), Authority.create()
    give(authority, folder / "edge", "edge", "edge")
    good = give(authority, folder / "good", "device", "d")
    foreign = give(other, folder / "foreign", "device", "d")
    half = give(other, folder / "half", "device", "d")
    half.ca.write_bytes(authority.cert_pem)  # trusts the edge, is not trusted by it
    old = give_expired(authority, folder / "old")
    operator = give(authority, folder / "operator", "operator", "ops")
    edges = [Edge(folder / "secure", folder / "edge"), Edge(folder / "plain", None)]
    secure, plain = (edge.address for edge in edges)
    elsewhere = secure.replace(HOST, "localhost")
    cases: list[tuple[str, Edge, Callable[[], Refusal]]] = [
        ("no certificate, plaintext to TLS", edges[0], lambda: refusal(secure, "edge", None)),
        ("TLS, no certificate", edges[0], lambda: call_refusal(secure, None, good.ca, "d")),
        ("both of another CA", edges[0], lambda: refusal(secure, "edge", foreign)),
        ("its own of another CA", edges[0], lambda: refusal(secure, "edge", half)),
        ("expired", edges[0], lambda: refusal(secure, "edge", old)),
        ("an edge where a cloud should be", edges[0], lambda: refusal(secure, "cloud", good)),
        ("another host", edges[0], lambda: refusal(elsewhere, "edge", good)),
        ("the wrong role", edges[0], lambda: call_refusal(secure, operator, good.ca, "d")),
        ("the wrong name", edges[0], lambda: call_refusal(secure, good, good.ca, "e")),
        ("TLS to plaintext", edges[1], lambda: refusal(plain, "edge", good)),
    ]
    try:
        print(f"\n{'seconds':>7}  refused, what it is told, and what the other end's log says")
        for what, edge, refused in cases:
            before = edge.log()
            seconds, reason = refused()
            time.sleep(0.5)  # for the log; after the clock
            said = edge.log()[len(before) :].strip().splitlines()
            print(f"{seconds:7.2f}  {what}: {reason.replace(str(folder), '...')}")
            for line in dict.fromkeys(line.partition(": ")[2] for line in said):
                print(f"{'':9}log: {line}")
    finally:
        for edge in edges:
            edge.close()


def main() -> None:
    """All parts, one after the other."""
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
        signatures(Path(temporary))
        refusals(Path(temporary))


if __name__ == "__main__":
    main()
