#!/usr/bin/env python3
"""Asks the configured package index whether every pin has a wheel for a 64-bit ARM board.

Nothing is downloaded: `pip index versions` lists what there is for another platform. Prints the
pins that have none. Exit code 0 where every pin has one, 1 otherwise; standard library only.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GLIBC = 36
"""Minor version of glibc 2 on Debian 12, the oldest system that the installer is for."""
AT_ONCE = 4
PATIENCE = 120.0
"""Seconds that the index may take for one answer."""


def pins(constraints: Path, torch: str) -> Iterator[tuple[str, str]]:
    """Name and version of each line of a constraints file; torch's is another on a board."""
    for line in constraints.read_text(encoding="utf-8").splitlines():
        name, equals, version = line.partition("==")
        if equals:
            yield name, torch if name == "torch" else version


def board_torch(installer: Path) -> str:
    """The version of torch that the installer takes on arm64."""
    found = re.search(r"aarch64.*then echo ([\d.]+)", installer.read_text(encoding="utf-8"))
    if found is None:
        raise SystemExit(f"error: {installer}: no version of torch for aarch64 found")
    return found[1]


def platforms(glibc: int) -> list[str]:
    """The platform tags that pip takes on an arm64 board with glibc 2.`glibc`."""
    return [
        "manylinux2014_aarch64",
        *(f"manylinux_2_{minor}_aarch64" for minor in range(17, glibc + 1)),
    ]


def versions(name: str, python: str, glibc: int) -> list[str]:
    """The versions of a package that have a wheel; none where it has none, or is unknown."""
    options = [f"--platform={platform}" for platform in platforms(glibc)]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "index", "versions"),
            *(name, "--pre", "--only-binary=:all:", f"--python-version={python}", *options),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    if done.returncode != 0 and "No matching distribution" not in done.stderr:
        raise SystemExit(f"error: {name}: {done.stderr.strip()}")
    listed = re.search(r"^Available versions: (.*)$", done.stdout, re.MULTILINE)
    return [] if listed is None else listed[1].split(", ")


def missing(wanted: Sequence[tuple[str, str]], python: str, glibc: int) -> list[str]:
    """The pins without a wheel, as `name==version`."""

    def lacks(pin: tuple[str, str]) -> bool:
        name, version = pin
        return version not in {v.partition("+")[0] for v in versions(name, python, glibc)}

    with ThreadPoolExecutor(AT_ONCE) as threads:
        answers = list(threads.map(lacks, wanted))
    return [
        f"{name}=={version}" for (name, version), lack in zip(wanted, answers, strict=True) if lack
    ]


def main() -> int:
    """Ask for every pin and every Python that was named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--python", nargs="+", default=["3.11"], metavar="X.Y", help="default: 3.11"
    )
    parser.add_argument(
        "--glibc", type=int, default=GLIBC, metavar="MINOR", help=f"default: {GLIBC}"
    )
    parser.add_argument("--constraints", type=Path, default=ROOT / "constraints.txt")
    parser.add_argument("--torch", metavar="VERSION", help="default: the installer's for arm64")
    options = parser.parse_args()
    installer = Path(__file__).with_name("install.sh")
    wanted = list(pins(options.constraints, options.torch or board_torch(installer)))
    found = {python: missing(wanted, python, options.glibc) for python in options.python}
    for python, without in found.items():
        there = len(wanted) - len(without)
        sys.stdout.write(f"Python {python}: {there} of {len(wanted)} pins have a wheel\n")
        sys.stdout.writelines(f"  none: {pin}\n" for pin in without)
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
