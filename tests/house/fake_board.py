"""A made-up board: a tree of the files that Linux, a Raspberry Pi and a Jetson tell through."""

from __future__ import annotations

from pathlib import Path

ROUTES = (
    "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    "{interface}\t00000000\t0100A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n"
    "eth9\t00000000\t0100A8C0\t0003\t0\t0\t1000\t00000000\t0\t0\t0\n"
    "{interface}\t0000A8C0\t00000000\t0001\t0\t0\t600\t00FFFFFF\t0\t0\t0\n"
)

NOWHERE = "00000000000000000000000000000000 00"
ROUTES_6 = (  # as Linux writes it: link-local, three default routes, one of which rejects
    f"fe80{28 * '0'} 40 {NOWHERE} {32 * '0'} 00000100 00000001 00000000 00000001 {{interface}}\n"
    f"{NOWHERE} {NOWHERE} fe80{27 * '0'}1 00000400 00000002 00000000 00450003 eth9\n"
    f"{NOWHERE} {NOWHERE} fe80{27 * '0'}1 00000258 00000002 00000000 00450003 {{interface}}\n"
    f"{NOWHERE} {NOWHERE} {32 * '0'} 00000001 00000001 00000000 00200200 lo\n"
)


class FakeBoard:
    """Files under `root`; what is not put there, the board does not have."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(f".{file.name}")
        beside.write_text(text + "\n")
        beside.replace(file)  # a reader finds the old text or this one

    def zones(self, *celsius: float) -> None:
        for number, degrees in enumerate(celsius):
            self.put(f"sys/class/thermal/thermal_zone{number}/temp", str(round(degrees * 1000)))

    def battery(self, percent: int, status: str = "Discharging", name: str = "BAT0") -> None:
        for key, value in (("type", "Battery"), ("capacity", str(percent)), ("status", status)):
            self.put(f"sys/class/power_supply/{name}/{key}", value)

    def firmware(self, bits: int) -> None:
        self.put("sys/devices/platform/soc/soc:firmware/get_throttled", f"{bits:x}")

    def cooling(self, state: int, kind: str = "cpufreq-cpu0") -> None:
        self.put("sys/class/thermal/cooling_device0/type", kind)
        self.put("sys/class/thermal/cooling_device0/cur_state", str(state))

    def jetson_power(self, volts: float, amperes: float) -> None:
        monitor = "sys/class/hwmon/hwmon3"
        self.put(f"{monitor}/name", "ina3221")
        self.put(f"{monitor}/in1_label", "VDD_IN")
        self.put(f"{monitor}/in1_input", str(round(volts * 1000)))
        self.put(f"{monitor}/curr1_input", str(round(amperes * 1000)))

    def route(self, interface: str) -> None:
        self.put("proc/net/route", ROUTES.format(interface=interface).rstrip())

    def route_6(self, interface: str) -> None:
        self.put("proc/net/route", ROUTES.splitlines()[0])
        self.put("proc/net/ipv6_route", ROUTES_6.format(interface=interface).rstrip())

    def program(self, name: str, script: str) -> None:
        self.put(f"usr/bin/{name}", f"#!/bin/sh\n{script}")
        (self.root / "usr/bin" / name).chmod(0o755)


def whole_board(root: Path) -> FakeBoard:
    """A board that has every sensor, all well."""
    board = FakeBoard(root)
    board.zones(48.5, 51.0)
    board.firmware(0)
    board.battery(87, "Charging")
    board.jetson_power(5.0, 1.25)
    board.route("wlan0")
    return board
