"""What a board tells of itself: heat, power, battery, and what its link costs.

Linux's own files, and two programs where these have none: `vcgencmd` (Raspberry Pi) and `nmcli`
(NetworkManager). All are looked for under a root: a test's tree, or a host's files in a container.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

ROOT = "SFL_BOARD_ROOT"
"""Environment variable: the folder that the machine's `/sys`, `/proc` and `/usr/bin` are in."""

PATIENCE = 2.0
"""Seconds that a program may take to answer."""

# Bits of the Raspberry Pi firmware's `get_throttled` that hold now; those from 16 on have held.
UNDERVOLTAGE, CAPPED, THROTTLED, SOFT_LIMIT = 1 << 0, 1 << 1, 1 << 2, 1 << 3
HELD_BEFORE = 16
ROUTE_UP, ROUTE_REJECTS = 0x1, 0x200  # flags of a route, from Linux's route.h
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


@dataclass(frozen=True, slots=True)
class Board:
    """A board's sensors at one moment; None where it has no such sensor.

    `temperature` is the hottest zone's, in degrees Celsius. `throttled`: clocks are throttled, by
    heat or power. `undervoltage`: the supply gives too little. `throttled_before` and
    `undervoltage_before`: so it was since the board started. `charge` of the battery is 0 to 1,
    of several the least; `on_battery`: it is being emptied. `power` is the whole board's, in watts.
    `interface` carries the default route; `metered` is NetworkManager's word on it.
    """

    temperature: float | None = None
    throttled: bool | None = None
    throttled_before: bool | None = None
    undervoltage: bool | None = None
    undervoltage_before: bool | None = None
    charge: float | None = None
    on_battery: bool | None = None
    power: float | None = None
    interface: str = ""
    metered: bool | None = None


def board_root() -> Path:
    """Where to look for the machine's files."""
    return Path(os.environ.get(ROOT, "/"))


def read_board(root: Path, ask_metered: bool = False) -> Board:
    """Read every sensor there is; `ask_metered` also asks NetworkManager, a program's start."""
    batteries = list(_batteries(root))
    charges = [_percent(battery) for battery in batteries]
    interface = default_interface(root)
    bits = _firmware_bits(root)
    return Board(
        temperature=_temperature(root),
        throttled=_throttled(root, bits),
        throttled_before=_held_before(bits, CAPPED | THROTTLED | SOFT_LIMIT),
        undervoltage=_undervoltage(root, bits),
        undervoltage_before=_held_before(bits, UNDERVOLTAGE),
        charge=min((charge for charge in charges if charge is not None), default=None),
        on_battery=any(text_in(b / "status") == "Discharging" for b in batteries)
        if batteries
        else None,
        power=board_power(root),
        interface=interface,
        metered=_metered(root, interface) if ask_metered and interface else None,
    )


def default_interface(root: Path) -> str:
    """The interface of the default route with the least metric; empty without one.

    IPv4's route counts, and IPv6's where there is none of IPv4.
    """
    routes = list(_ipv4_defaults(root)) or list(_ipv6_defaults(root))
    return min(routes)[1] if routes else ""


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether an interface is one of these; `*` and `?` stand for letters."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _ipv4_defaults(root: Path) -> Iterator[tuple[int, str]]:
    """Metric and interface of each default route, from the kernel's table."""
    for line in text_in(root / "proc/net/route").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 7 and _leads_out(fields[3]) and not (_hex(fields[1]) or _hex(fields[7])):
            yield int(fields[6]), fields[0]


def _ipv6_defaults(root: Path) -> Iterator[tuple[int, str]]:
    """The same of IPv6, whose table has no heading, and metrics in hexadecimal."""
    for line in text_in(root / "proc/net/ipv6_route").splitlines():
        fields = line.split()
        if len(fields) == 10 and _leads_out(fields[8]) and not (_hex(fields[0] + fields[1])):
            yield _hex(fields[5]), fields[9]


def _leads_out(flags: str) -> bool:
    """Whether a route is up and does not reject, as the entry for "unreachable" does."""
    return _hex(flags) & (ROUTE_UP | ROUTE_REJECTS) == ROUTE_UP


def _hex(text: str) -> int:
    return int(text, 16)


def _temperature(root: Path) -> float | None:
    zones = (number_in(path) for path in root.glob("sys/class/thermal/thermal_zone*/temp"))
    # A zone that is switched off reads as an error or as something far from the possible.
    degrees = [zone / 1000 for zone in zones if zone is not None and -40e3 < zone < 200e3]
    return max(degrees, default=None)


def _firmware_bits(root: Path) -> int | None:
    """A Raspberry Pi's `get_throttled`, from the kernel's file or else from the program."""
    text = text_in(root / FIRMWARE)
    if not text:
        answer = _answer(root, "vcgencmd", "get_throttled")
        text = answer.partition("=")[2] if answer.startswith("throttled=") else ""
    try:
        return int(text, 16) if text else None
    except ValueError:
        return None


def _held_before(bits: int | None, which: int) -> bool | None:
    return None if bits is None else bool(bits >> HELD_BEFORE & which)


def _throttled(root: Path, bits: int | None) -> bool | None:
    """The firmware's word; else whether the kernel holds a clock down to cool the board."""
    if bits is not None:
        return bool(bits & (CAPPED | THROTTLED | SOFT_LIMIT))
    states = [
        number_in(device / "cur_state")
        for device in root.glob("sys/class/thermal/cooling_device*")
        if any(word in text_in(device / "type").lower() for word in ("cpufreq", "devfreq", "proc"))
    ]
    known = [state for state in states if state is not None]
    return any(state > 0 for state in known) if known else None


def _undervoltage(root: Path, bits: int | None) -> bool | None:
    """The firmware's word; else the alarm of the Raspberry Pi's voltage monitor."""
    if bits is not None:
        return bool(bits & UNDERVOLTAGE)
    alarms = [number_in(m / "in0_lcrit_alarm") for m in _monitors(root) if _name(m) == "rpi_volt"]
    known = [alarm for alarm in alarms if alarm is not None]
    return any(known) if known else None


def board_power(root: Path) -> float | None:
    """A Jetson's input, which jtop reads from the same file: volts times amperes of VDD_IN."""
    for monitor in _monitors(root):
        if not _name(monitor).startswith("ina3221"):
            continue
        for label in monitor.glob("in*_label"):
            channel = label.name.removeprefix("in").removesuffix("_label")
            if text_in(label) in ("VDD_IN", "POM_5V_IN"):
                millivolts = number_in(monitor / f"in{channel}_input")
                milliamperes = number_in(monitor / f"curr{channel}_input")
                if millivolts is not None and milliamperes is not None:
                    return millivolts * milliamperes / 1e6
    return None


def _batteries(root: Path) -> Iterator[Path]:
    """Batteries that this machine runs on, not those of a mouse."""
    for supply in sorted(root.glob("sys/class/power_supply/*")):
        if text_in(supply / "type") == "Battery" and text_in(supply / "scope") != "Device":
            yield supply


def _percent(battery: Path) -> float | None:
    percent = number_in(battery / "capacity")
    return None if percent is None else min(1.0, max(0.0, percent / 100))


def _metered(root: Path, interface: str) -> bool | None:
    """NetworkManager says yes, no, or one of these as a guess."""
    answer = _answer(root, "nmcli", "-g", "GENERAL.METERED", "device", "show", interface)
    return {"y": True, "n": False}.get(answer[:1])


def _monitors(root: Path) -> list[Path]:
    return sorted(root.glob("sys/class/hwmon/hwmon*"))


def _name(monitor: Path) -> str:
    return text_in(monitor / "name")


def number_in(path: Path) -> int | None:
    """A file's whole number; None where there is none."""
    text = text_in(path)
    return int(text) if text.lstrip("-").isdecimal() else None


def text_in(path: Path) -> str:
    """What a file says; empty where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _answer(root: Path, program: str, *arguments: str) -> str:
    """What a program of the board prints; empty where it is not there, fails or hangs."""
    path = root / "usr/bin" / program
    if not path.is_file():
        return ""
    try:
        done = subprocess.run(
            [path, *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
