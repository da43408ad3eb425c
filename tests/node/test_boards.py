"""Boards: their sensors, rests, systemd's socket, and what installs an agent on them."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time as clock
import tomllib
from datetime import time
from pathlib import Path
from typing import Any

import pytest

from sfl.cli.doctor.hardware import check_board, check_pause
from sfl.config import load_device
from sfl.config.pausing import PauseSettings
from sfl.errors import ConfigError
from sfl.metrics import NodeSnapshot, NodeStats
from sfl.node.board import Board, read_board
from sfl.node.certificates.identity import Identity
from sfl.node.certificates.own import own_certificate
from sfl.node.notify import notifier
from sfl.node.pausing import REASONS, Pause, decide
from tests.house.fake_board import FakeBoard, whole_board
from tests.house.fleets import fleet
from tests.house.nodes import ByHand
from tests.house.paths import QUICKSTART, ROOT
from tests.house.waiting import PATIENCE, until

NOON = time(12, 0)


# -- sensors ---------------------------------------------------------------------------------------


def test_a_board_without_sensors_tells_nothing(tmp_path: Path) -> None:
    assert read_board(tmp_path, ask_metered=True) == Board()


def test_every_sensor_is_read(tmp_path: Path) -> None:
    board = whole_board(tmp_path)
    assert read_board(tmp_path) == Board(
        temperature=51.0,
        throttled=False,
        throttled_before=False,
        undervoltage=False,
        undervoltage_before=False,
        charge=0.87,
        on_battery=False,
        power=6.25,
        interface="wlan0",
    )
    board.zones(48.5, 51.0, -274.0)  # what a zone that is switched off may read
    board.put("sys/class/thermal/thermal_zone7/temp", "")
    board.battery(20)
    board.battery(3, name="hid-mouse")
    board.put("sys/class/power_supply/hid-mouse/scope", "Device")
    seen = read_board(tmp_path)
    assert (seen.temperature, seen.charge, seen.on_battery) == (51.0, 0.2, True)


@pytest.mark.process
@pytest.mark.parametrize(
    ("bits", "throttled", "before", "undervoltage", "undervoltage_before"),
    [
        (0x0, False, False, False, False),
        (0x1, False, False, True, False),
        (0x4, True, False, False, False),
        (0x8, True, False, False, False),
        (0x50000, False, True, False, True),
        (0x50005, True, True, True, True),
    ],
)
@pytest.mark.parametrize("source", ["kernel", "vcgencmd"])
def test_bits_of_a_raspberry_pi(
    tmp_path: Path,
    source: str,
    bits: int,
    throttled: bool,
    before: bool,
    undervoltage: bool,
    undervoltage_before: bool,
) -> None:
    board = FakeBoard(tmp_path)
    if source == "kernel":
        board.firmware(bits)
    else:
        board.program("vcgencmd", f'test "$1" = get_throttled && echo throttled={bits:#x}')
    seen = read_board(tmp_path)
    assert (seen.throttled, seen.throttled_before) == (throttled, before)
    assert (seen.undervoltage, seen.undervoltage_before) == (undervoltage, undervoltage_before)


@pytest.mark.process
def test_a_program_that_fails_is_a_sensor_that_is_not_there(tmp_path: Path) -> None:
    board = FakeBoard(tmp_path)
    board.program("vcgencmd", "echo VCHI initialization failed; exit 255")
    board.route("wwan0")
    board.program("nmcli", "echo unknown")
    seen = read_board(tmp_path, ask_metered=True)
    assert seen == Board(interface="wwan0")


def test_where_there_is_no_firmware_the_kernel_is_asked(tmp_path: Path) -> None:
    board = FakeBoard(tmp_path)
    board.cooling(0)
    assert read_board(tmp_path).throttled is False
    board.cooling(3)
    assert read_board(tmp_path).throttled is True
    board.cooling(3, "pwm-fan")  # a fan that turns holds nothing down
    assert read_board(tmp_path).throttled is None
    board.put("sys/class/hwmon/hwmon0/name", "rpi_volt")
    board.put("sys/class/hwmon/hwmon0/in0_lcrit_alarm", "1")
    assert read_board(tmp_path).undervoltage is True


@pytest.mark.process
@pytest.mark.parametrize(
    ("answer", "metered"),
    [("yes", True), ("yes (guessed)", True), ("no (guessed)", False), ("unknown", None)],
)
def test_network_manager_says_what_is_metered(
    tmp_path: Path, answer: str, metered: bool | None
) -> None:
    board = FakeBoard(tmp_path)
    board.route("wlan0")
    board.program("nmcli", f'test "$5" = wlan0 && echo "{answer}"')
    assert read_board(tmp_path, ask_metered=True).metered is metered
    assert read_board(tmp_path).metered is None  # not asked


def test_the_default_route_may_be_ipv6_s(tmp_path: Path) -> None:
    board = FakeBoard(tmp_path)
    board.route_6("wwan0")
    named = PauseSettings(metered_interfaces=("wwan*",))
    assert read_board(tmp_path).interface == "wwan0"
    assert reason(named, read_board(tmp_path)) == "metered"
    board.route("wlan0")
    assert read_board(tmp_path).interface == "wlan0"
    board.put("proc/net/route", board.root.joinpath("proc/net/route").read_text().splitlines()[0])
    board.put("proc/net/ipv6_route", "")
    alone = check_pause(named, read_board(tmp_path), NOON)
    assert alone.mark == "warning"
    assert "pause.metered_interfaces has no effect" in alone.text


def test_sensors_travel_with_a_snapshot() -> None:
    stats = NodeStats("home", "device")
    stats.board = Board(51.0, True, True, False, True, 0.5, True, 6.25)
    stats.paused = "heat"
    snapshot = NodeSnapshot.from_json(stats.snapshot().to_json())
    assert (snapshot.temperature, snapshot.throttled, snapshot.undervoltage) == (51.0, 1.0, 0.0)
    assert (snapshot.charge, snapshot.on_battery, snapshot.power) == (0.5, 1.0, 6.25)
    assert snapshot.paused == "heat"


def test_doctor_names_what_is_wrong_and_what_mends_it() -> None:
    well = check_board(Board(51.0, False, False, False, False, 0.5, True, 6.25))
    assert (well.mark, well.fix) == ("ok", "")
    assert well.text == "51 °C; battery at 50%, in use; takes 6.2 W; clocks not throttled"
    assert check_board(Board()).text == "no sensors"
    bad = check_board(Board(84.0, True, True, False, True))
    assert bad.mark == "warning"
    assert "84 °C; hot; the power supply was too weak since the start" in bad.text
    assert "clocks are throttled" in bad.text
    assert "pause.above_celsius" in bad.fix and "power supply" in bad.fix
    rules = PauseSettings(above_celsius=80, metered=True)
    resting = check_pause(rules, Board(84.0), NOON)
    assert resting.mark == "warning" and "would pause now: 84 °C, above 80" in resting.text
    assert "pause.metered has no effect" in resting.text
    assert check_pause(PauseSettings(above_celsius=85), Board(84.0), NOON).mark == "ok"


# -- whether to rest -------------------------------------------------------------------------------


def reason(rules: PauseSettings, board: Board, now: time = NOON, was: str = "") -> str:
    before = Pause(was, "") if was else None  # type: ignore[arg-type]
    pause = decide(rules, board, now, before)
    return "" if pause is None else pause.reason


def test_without_rules_a_device_never_rests() -> None:
    assert reason(PauseSettings(), Board(120.0, True, charge=0.0, metered=True)) == ""


@pytest.mark.parametrize(
    ("celsius", "was", "expected"),
    [
        (80.0, "", ""),
        (80.1, "", "heat"),
        (75.1, "heat", "heat"),
        (75.0, "heat", ""),
        (79.0, "", ""),
    ],
)
def test_heat_has_two_bounds(celsius: float, was: str, expected: str) -> None:
    assert reason(PauseSettings(above_celsius=80), Board(celsius), was=was) == expected
    wide = PauseSettings(above_celsius=80, cool_celsius=50)
    assert reason(wide, Board(60.0), was="heat") == "heat"
    assert reason(wide, Board(None), was="heat") == ""  # no sensor, no rule


@pytest.mark.parametrize(
    ("charge", "was", "expected"),
    [(0.3, "", ""), (0.29, "", "charge"), (0.34, "charge", "charge"), (0.35, "charge", "")],
)
def test_charge_has_two_bounds(charge: float, was: str, expected: str) -> None:
    assert reason(PauseSettings(below_percent=30), Board(charge=charge), was=was) == expected


def test_a_full_battery_ends_a_rest_below_97_percent() -> None:
    rules = PauseSettings(below_percent=97)
    assert reason(rules, Board(charge=0.99), was="charge") == "charge"
    assert reason(rules, Board(charge=1.0), was="charge") == ""


@pytest.mark.parametrize(
    ("hours", "now", "expected"),
    [
        (("22:00-06:00",), time(23, 0), ""),
        (("22:00-06:00",), time(5, 59), ""),
        (("22:00-06:00",), time(6, 0), "hours"),
        (("22:00-06:00", "12:00-13:00"), NOON, ""),
        (("9:00-17:00",), time(17, 0), "hours"),
        (("9:00-0:00",), time(23, 59), ""),
    ],
)
def test_hours_may_go_over_midnight(hours: tuple[str, ...], now: time, expected: str) -> None:
    assert reason(PauseSettings(hours=hours), Board(), now) == expected


def test_a_metered_link_is_one_that_is_called_so_or_named() -> None:
    called = Board(interface="wlan0", metered=True)
    assert reason(PauseSettings(metered=True), called) == "metered"
    assert reason(PauseSettings(metered=True), Board(interface="wlan0", metered=False)) == ""
    named = PauseSettings(metered_interfaces=("usb0", "wwan*"))
    assert reason(named, Board(interface="wwan0")) == "metered"
    assert reason(named, called) == ""
    assert reason(named, Board()) == ""


def test_reasons_are_words_that_a_snapshot_carries() -> None:
    for word in REASONS:
        stats = NodeStats("home", "device")
        stats.paused = word
        assert NodeSnapshot.from_json(stats.snapshot().to_json()).paused == word


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("above_celsius = 500", ["device.pause.above_celsius", "500", "150"]),
        ('above_celsius = "hot"', ["device.pause.above_celsius", "hot"]),
        ("above_celsius = 70\ncool_celsius = 70", ["device.pause.cool_celsius", "70", "higher"]),
        ("cool_celsius = 70", ["device.pause.cool_celsius", "above_celsius"]),
        ("below_percent = 0", ["device.pause.below_percent", "0"]),
        ("below_percent = 40\ncharged_percent = 30", ["pause.charged_percent", "30"]),
        ('hours = ["10pm-6am"]', ["device.pause.hours.0", "10pm-6am", "22:00-06:00"]),
        ('hours = ["24:00-06:00"]', ["24:00-06:00", "00:00 to 23:59"]),
        ('hours = ["06:00-06:00"]', ["06:00-06:00", "same time"]),
        ("check_interval = 0", ["device.pause.check_interval", "0"]),
        ("above_celcius = 70", ["above_celcius", "Did you mean 'above_celsius'"]),
    ],
)
def test_bad_rules_are_named(tmp_path: Path, line: str, words: list[str]) -> None:
    path = tmp_path / "device.toml"
    path.write_text(f'[device]\nname = "a"\nedge = "127.0.0.1:1"\n[device.pause]\n{line}\n')
    with pytest.raises(ConfigError) as error:
        load_device(path)
    for word in words:
        assert word in str(error.value)


# -- systemd's socket ------------------------------------------------------------------------------


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A service manager's socket, and the address it goes by in the environment."""
    name = str(tmp_path / "notify")
    address, bound = name, name
    if request.param == "abstract":
        address, bound = f"@{name}", f"\0{name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(bound)
        listening.settimeout(PATIENCE)
        yield listening, address


def test_messages_reach_the_manager(manager: Any) -> None:
    listening, address = manager
    told = notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "30000000"})
    assert told.watchdog == 30.0
    told.ready()
    told.status("two\nlines")
    told.alive()
    told.stopping()
    told.close()
    told.alive()
    got = [listening.recv(100).decode() for _ in range(4)]
    assert got == ["READY=1", "STATUS=two lines", "WATCHDOG=1", "STOPPING=1"]
    listening.setblocking(False)
    with pytest.raises(BlockingIOError):
        listening.recv(100)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},
    ],
)
def test_a_watchdog_that_is_not_ours_is_not_fed(manager: Any, environment: dict[str, str]) -> None:
    listening, address = manager
    told = notifier({"NOTIFY_SOCKET": address, **environment})
    assert told.watchdog is None
    told.alive()
    told.ready()
    assert listening.recv(100) == b"READY=1"
    told.close()


def test_no_manager_and_a_gone_manager_harm_nothing(tmp_path: Path) -> None:
    for environment in ({}, {"NOTIFY_SOCKET": str(tmp_path / "absent")}):
        told = notifier({**environment, "WATCHDOG_USEC": "1000000"})
        told.ready()
        told.alive()
        told.close()


def test_this_process_is_the_one_that_is_meant() -> None:
    environment = {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())}
    assert notifier(environment).watchdog == 1.0


# -- an agent that rests ---------------------------------------------------------------------------


class Nodes(ByHand):
    """Nodes by hand, each device on a made-up board with a rule; d0 has a service manager too."""

    def device(self, number: int) -> subprocess.Popen[bytes]:
        name = f"d{number}"
        (self.folder / f"{name}.toml").write_text(
            f'[device]\nname = "{name}"\nedge = "{self.edge_address}"\nthreads = 1\n'
            f'train = "{self.folder / f"{name}.jsonl"}"\ncache_dir = "{self.folder / "cache"}"\n'
            "[device.pause]\nabove_celsius = 80\ncheck_interval = 0.1\n"
        )
        return self.start("device", self.folder / f"{name}.toml", name)

    def environment(self, name: str) -> dict[str, str]:
        """A board for each, and a manager for d0."""
        board = {"SFL_BOARD_ROOT": str(self.folder / "boards" / name)}
        manager = {"NOTIFY_SOCKET": str(self.folder / "notify"), "WATCHDOG_USEC": "1000000"}
        return board | manager if name == "d0" else board

    def heat(self, name: str, celsius: float) -> None:
        FakeBoard(self.folder / "boards" / name).zones(celsius)

    def state(self, name: str) -> str:
        known = {d["name"]: d["state"] for d in self.status().get("devices", [])}
        return str(known.get(name, ""))

    def steps(self, name: str) -> int:
        return {d["name"]: int(d["step"]) for d in self.status()["devices"]}[name]


@pytest.mark.process
def test_a_hot_device_rests_before_it_joins_and_between_steps_and_comes_back(
    tmp_path: Path,
) -> None:
    values = fleet(
        tmp_path,
        2,
        run={"rounds": 3, "min_devices": 1},
        training={"local_steps": 8},
        network={"round_timeout": 12.0, "join_timeout": 600.0, "heartbeat_interval": 0.25},
    )
    for entry in values["devices"]:  # rounds take seconds, and heat comes in the middle of one
        entry["link"] = {"delay_ms": 150.0}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        told: list[str] = []
        # A queue of datagrams that nobody reads is soon full.
        threading.Thread(target=hear, args=(manager, told), daemon=True).start()
        nodes = Nodes(tmp_path, values)
        try:
            hot_life(nodes)
            until(lambda: "STOPPING=1" in told, "the last word to the manager")
        finally:
            nodes.stop()
    assert told[:2] == ["STATUS=paused: 90 °C, above 80; continues at 75", "READY=1"]
    assert "WATCHDOG=1" in told
    assert any(line.startswith("STATUS=run t: round ") for line in told)
    assert told[-1] == "STOPPING=1"


def hot_life(nodes: Nodes) -> None:
    """A device that is hot before the run and in its first round."""
    nodes.heat("d0", 90)
    nodes.heat("d1", 50)
    devices = [nodes.device(0), nodes.device(1)]
    until(lambda: "paused (heat): 90 °C, above 80; continues at 75" in nodes.log("d0"), "a rest")
    until(lambda: nodes.state("d1") == "ready", "the other device")
    assert nodes.state("d0") == "not here yet"
    nodes.heat("d1", 90)  # so that the first round is not over before d0 is hot again
    nodes.heat("d0", 70)
    until(lambda: nodes.state("d0") in ("training", "evaluating"), "the first round")
    nodes.heat("d0", 90)
    until(lambda: nodes.state("d0") == "paused: heat", "a rest in mid-round")
    until(lambda: 'sfl_temperature_celsius{device="d0"} 90.0' in nodes.metrics("edge"), "90 °C")
    nodes.heat("d1", 50)
    metrics = nodes.metrics("edge")
    assert 'sfl_paused{device="d0",reason="heat"} 1.0' in metrics
    assert 'sfl_paused{device="d0",reason="hours"} 0.0' in metrics
    nodes.heat("d0", 78)  # below the first bound, above the second
    until(lambda: 'sfl_temperature_celsius{device="d0"} 78.0' in nodes.metrics("edge"), "78 °C")
    stood = nodes.steps("d0")
    until(lambda: nodes.state("d0") == "lost", "the end of the round's patience")
    assert nodes.steps("d0") <= stood + 1  # the step that was under way
    nodes.heat("d1", 90)  # so that the run is not over before d0 is back
    nodes.heat("d0", 70)
    until(lambda: nodes.state("d0") == "ready", "the device again")
    nodes.heat("d1", 50)
    outcome = nodes.outcome()
    assert outcome.code == 0, outcome.output
    fault, *later = outcome.summary["faults"]  # later: where the machine is very busy
    assert (fault["node"], fault["round"]) == ("d0", 1)
    assert "round_timeout" in fault["problem"]
    assert "round 2 of 3: d1\n" in nodes.log("cloud")
    assert "round 3 of 3: d0, d1\n" in nodes.log("cloud")
    assert "joining again" in nodes.log("d0")
    codes = [process.wait(PATIENCE) for process in devices]
    assert codes == [0, 0] or later


def hear(manager: socket.socket, told: list[str]) -> None:
    """Keep what is sent, until the last word."""
    while "STOPPING=1" not in told:
        told.append(manager.recv(1000).decode())


# -- what installs an agent ------------------------------------------------------------------------

BOARD = ROOT / "device_agent" / "board"
UNIT = BOARD / "sfl-device.service"
SCRIPTS = [BOARD / "install.sh", BOARD / "uninstall.sh"]
CHECK = BOARD / "check_wheels.py"
ASKED = "SFL_TEST_BOARDS"
IMAGE = "python:3.11-slim-bookworm"


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!\[]", requirement)[0].replace("_", "-").lower()


@pytest.mark.process
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True, capture_output=True)
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text()


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nam", "pi"], "unknown option --nam"),
        (["--name", "a b", "--edge", "edge:7001"], "--name 'a b'"),
        (["--name", "pi", "--edge", "edge"], "--edge 'edge': write HOST:PORT"),
        (["--name", "pi", "--edge", "e:1", "--certs", "/absent"], "there is no ca.pem"),
    ],
)
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("apt-get") is None, reason="needs root and apt-get"
)
def test_the_installer_names_a_mistake_before_it_does_anything(
    arguments: list[str], words: str
) -> None:
    done = subprocess.run(
        [SCRIPTS[0], *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""
    assert not Path("/opt/sfl").exists()


# As without root: files are copied, whoever is to own them.
AS_ANYBODY = """
source {installer} "$@"
prefix={root}/opt config={root}/etc work=$(mktemp -d) changed=no
mkdir -p $config/tls
folder() {{ mkdir -p "$1"; }}
file() {{ cmp -s "$1" "$2" || {{ say "writing $2"; cp "$1" "$2"; }}; }}
id() {{ echo 0; }}
"""


def sourced(
    root: Path, script: str, *arguments: str, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Functions of the installer, over a folder instead of the machine."""
    first = AS_ANYBODY.format(installer=SCRIPTS[0], root=root)
    done = subprocess.run(
        ["bash", "-c", first + script, "bash", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


CONFIGURE = "check; write_config; tell_what_is_missing"


@pytest.mark.process
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_certificates_end_an_insecure_installation(tmp_path: Path) -> None:
    new = ["--name", "pi", "--edge", "edge.lan:7001"]
    config, env = tmp_path / "etc/device.toml", tmp_path / "etc/device.env"
    bare = sourced(tmp_path, CONFIGURE, *new)
    assert "missing: certificates. The device will not dial edge.lan:7001" in bare.stderr
    assert load_device(config).tls is None
    assert sourced(tmp_path, CONFIGURE, "--insecure").stderr == ""
    assert env.read_text() == "SFL_OPTIONS=--insecure\n"
    env.write_text('# mine\nSFL_OPTIONS="--log-format json --insecure"\n')
    assert sourced(tmp_path, CONFIGURE, "--insecure").stdout == ""
    config.write_text(config.read_text().replace("above_celsius = 80", "above_celsius = 70"))
    certs = certificate(tmp_path / "issued", "pi")
    other = sourced(tmp_path, CONFIGURE, "--certs", str(certs), "--name", "po", code=2)
    assert "--name 'po'" in other.stderr and "is of 'pi'" in other.stderr
    given = sourced(tmp_path, CONFIGURE, "--certs", str(certs), "--name", "pi")
    assert given.stderr == ""
    assert env.read_text() == "# mine\nSFL_OPTIONS=--log-format json\n"
    settings = load_device(config)
    assert settings.pause.above_celsius == 70
    assert settings.tls is not None and settings.tls.cert == tmp_path / "etc/tls/pi.pem"
    assert own_certificate("device", "pi", settings.tls) is not None
    again = sourced(tmp_path, CONFIGURE, "--certs", str(certs), "--name", "pi")
    assert (again.stdout, again.stderr) == ("", "")
    bare = sourced(tmp_path, CONFIGURE)  # as an update
    assert (bare.stdout, bare.stderr) == ("", "")
    back = sourced(tmp_path, CONFIGURE, "--insecure", code=2)
    assert "take its [device.tls] out first" in back.stderr
    config.write_text(config.read_text().replace("tls/pi.pem", "elsewhere.pem"))
    not_ours = sourced(tmp_path, CONFIGURE, "--certs", str(certs), "--name", "pi", code=2)
    assert "does not name" in not_ours.stderr


@pytest.mark.process
def test_a_venv_of_another_python_is_made_anew(tmp_path: Path) -> None:
    make, venv = "make_venv", tmp_path / "opt/venv"
    program = tmp_path / "python"  # without pip, which takes seconds
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@" ${{3:+--without-pip}}\n')
    program.chmod(0o755)
    python = ["--python", str(program)]
    sourced(tmp_path, make, *python)
    mark = venv / "mark"
    mark.touch()
    assert sourced(tmp_path, make, *python).stdout == ""
    assert mark.exists()
    settings = venv / "pyvenv.cfg"
    now = ".".join(map(str, sys.version_info[:2]))
    settings.write_text(settings.read_text().replace(f"version = {now}", "version = 3.9"))
    assert f"making {venv} anew, of {now}" in sourced(tmp_path, make, *python).stdout
    assert not mark.exists()
    mark.touch()
    (venv / "bin/python").unlink()  # as a link to an interpreter that the system replaced
    assert "anew" in sourced(tmp_path, make, *python).stdout
    assert not mark.exists()


RECORD = """
make_venv() { mkdir -p $prefix/venv/bin; printf '#!/bin/sh\\necho "$@" >>%s/calls\\n' "$prefix" \
  >$prefix/venv/bin/python; chmod +x $prefix/venv/bin/python; }
install_sfl
"""


@pytest.mark.process
def test_torch_s_own_index_is_asked_for_torch_alone(tmp_path: Path) -> None:
    index = ["--torch-index", "http://index.invalid", "--torch", "9.9"]
    sourced(tmp_path, RECORD, "--python", sys.executable, *index)
    first, second = (tmp_path / "opt/calls").read_text().splitlines()[:2]
    assert first.endswith("--no-deps --index-url http://index.invalid torch==9.9")
    assert "-r" in second.split() and "--only-binary=:all:" in second.split()
    assert "--no-deps" not in second and "index.invalid" not in second
    (tmp_path / "opt/calls").unlink()
    sourced(tmp_path, RECORD, "--python", sys.executable)
    first, _ = (tmp_path / "opt/calls").read_text().splitlines()[:2]
    assert "--no-deps" not in first and "--index-url" not in first


@pytest.mark.process
def test_an_edge_on_the_board_itself_needs_no_certificate(tmp_path: Path) -> None:
    for edge in ("127.0.0.1:7001", "localhost:7001", "[::1]:7001"):
        (tmp_path / "etc").mkdir(exist_ok=True)
        (tmp_path / "etc/device.toml").write_text(f'[device]\nname = "pi"\nedge = "{edge}"\n')
        assert sourced(tmp_path, "tell_what_is_missing").stderr == ""


def test_a_device_is_given_what_it_needs_in_pinned_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    depends = {name_of(line) for line in project["dependencies"]}
    lines = (BOARD / "requirements.txt").read_text().splitlines()
    wanted = {name_of(line) for line in lines if not line.startswith("#")}
    of_clouds = {"alembic", "fsspec", "sqlalchemy"}
    assert depends - wanted - of_clouds == {"datasets", "peft"}
    assert wanted <= depends
    pinned = {name_of(line) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert wanted <= pinned
    (least,) = (line for line in project["dependencies"] if name_of(line) == "torch")
    arm = re.search(r"aarch64.*then echo ([\d.]+)", SCRIPTS[0].read_text())
    assert arm is not None
    assert [int(n) for n in arm[1].split(".")] >= [
        int(n) for n in least.partition(">=")[2].split(".")
    ]


def test_the_template_of_the_installer_is_a_device_s_file(tmp_path: Path) -> None:
    text = (
        (BOARD / "device.toml").read_text().replace("@NAME@", "pi").replace("@EDGE@", "edge:7001")
    )
    path = tmp_path / "device.toml"
    path.write_text(text)
    config = load_device(path)
    assert (config.name, config.edge, config.pause.above_celsius) == ("pi", "edge:7001", 80)
    path.write_text(re.sub(r"(?m)^# (?=\w+ = )", "", text))  # what is commented out is valid too
    whole = load_device(path)
    assert whole.memory is not None
    assert (whole.pause.below_percent, whole.pause.metered) == (30, True)
    assert whole.pause.hours == ("22:00-06:00",)


def unit_settings(unit: Path = UNIT) -> dict[str, list[str]]:
    """The unit's settings of [Service], by name."""
    section, found = "", dict[str, list[str]]()
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def stopped() -> int:
    """How a node ends that is told to stop."""
    script = (
        "import os, signal\nfrom sfl.node.process import run_node\n"
        "raise SystemExit(run_node(lambda: os.kill(os.getpid(), signal.SIGTERM)))"
    )
    return subprocess.run([sys.executable, "-c", script], check=False, timeout=60).returncode


def certificate(folder: Path, name: str) -> Path:
    """A device's folder, as `sfl ca issue` writes it."""
    made = pytest.importorskip("sfl.node.certificates.authority", exc_type=ImportError)
    authority = made.Authority.create()
    authority.write(authority.issue(Identity("device", name)), folder)
    return folder


def test_a_clock_that_is_not_set_does_not_keep_a_device_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = certificate(tmp_path, "pi")
    assert own_certificate("device", "pi", None, folder) is not None
    now = clock.time()
    monkeypatch.setattr(clock, "time", lambda: now - 30 * 86400)
    with pytest.raises(ConfigError, match=r"is not valid before.*Set the clock") as early:
        own_certificate("device", "pi", None, folder)
    assert str(early.value.exit_code) not in unit_settings()["RestartPreventExitStatus"]
    monkeypatch.setattr(clock, "time", lambda: now + 3000 * 86400)
    with pytest.raises(ConfigError, match="expired on") as late:
        own_certificate("device", "pi", None, folder)
    assert str(late.value.exit_code) in unit_settings()["RestartPreventExitStatus"]


@pytest.mark.process
def test_the_unit_is_watched_bounded_and_locked_in() -> None:
    settings = unit_settings()
    assert settings["Type"] == ["notify"]
    # The agent reports at least twice in that time: see BoardWatch.
    assert int(settings["WatchdogSec"][0]) >= 10
    assert settings["MemoryMax"] and settings["User"] == ["sfl"]
    assert settings["RestartPreventExitStatus"] == [str(ConfigError.exit_code)]
    assert settings["SuccessExitStatus"] == [str(stopped())]
    for name in ("NoNewPrivileges", "PrivateTmp", "ProtectHome", "RestrictNamespaces"):
        assert settings[name] == ["yes"], name
    assert settings["ProtectSystem"] == ["strict"]
    assert settings["CapabilityBoundingSet"] == [""]
    assert "-m device_agent /etc/sfl/device.toml" in settings["ExecStart"][0]


def test_nothing_closes_a_jetson_s_devices() -> None:
    settings = unit_settings() | unit_settings(BOARD / "jetson.conf")
    assert settings["DevicePolicy"] == ["auto"]
    assert settings["DeviceAllow"] == [""]
    # What implies a list of allowed devices, or takes them away.
    for name in ("ProtectClock", "PrivateDevices"):
        assert settings.get(name, ["no"]) == ["no"], name
    assert settings["CapabilityBoundingSet"] == [""]  # so the clock cannot be set


@pytest.mark.process
@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
@pytest.mark.parametrize("jetson", [False, True])
def test_systemd_finds_the_unit_sound(tmp_path: Path, jetson: bool) -> None:
    unit = tmp_path / UNIT.name
    # It also looks whether the program is there.
    unit.write_text(UNIT.read_text().replace("/opt/sfl/venv/bin/python", sys.executable))
    if jetson:
        (tmp_path / f"{UNIT.name}.d").mkdir()
        shutil.copy(BOARD / "jetson.conf", tmp_path / f"{UNIT.name}.d")
    done = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# Every file with its mode, owner, size and time of change, but for what every process touches.
LEFT_OUT = "/proc /sys /tmp /var/log /src"
STATE = (
    f"find / -xdev \\( -path {LEFT_OUT.replace(' ', ' -o -path ')} \\) -prune "
    "-o ! -type d -printf '%p %M %u:%g %s %T@\\n' | LC_ALL=C sort"
)


@pytest.mark.process
def test_pins_without_a_wheel_for_the_board_are_named(tmp_path: Path) -> None:
    tags = {"pure": "py3-none-any", "native": "cp311-cp311-manylinux_2_28_aarch64"}
    elsewhere = {
        "foreign": "cp311-cp311-manylinux_2_28_x86_64",
        "torch": "cp311-cp311-linux_armv7l",
    }
    for name, tag in (tags | elsewhere).items():
        page = tmp_path / "index" / name / "index.html"
        page.parent.mkdir(parents=True)
        page.write_text(f'<!DOCTYPE html><a href="{name}-1.0-{tag}.whl">{name}-1.0-{tag}.whl</a>')
    (tmp_path / "pins").write_text("pure==1.0\nnative==1.0\nforeign==1.0\ntorch==2.0\n")
    done = subprocess.run(
        [sys.executable, CHECK, "--constraints", tmp_path / "pins", "--torch", "1.0"],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={
            **{key: value for key, value in os.environ.items() if not key.startswith("PIP_")},
            "PIP_INDEX_URL": (tmp_path / "index").as_uri(),
            "PIP_CONFIG_FILE": os.devnull,
        },
    )
    assert done.stdout == (
        "Python 3.11: 2 of 4 pins have a wheel\n  none: foreign==1.0\n  none: torch==1.0\n"
    ), done.stderr
    assert done.returncode == 1


@pytest.mark.process
@pytest.mark.skipif(
    os.environ.get(ASKED) != "1",
    reason=f"takes minutes and a Docker engine: {ASKED}=1, options in SFL_TEST_DOCKER_OPTIONS",
)
def test_the_installer_in_a_clean_container(tmp_path: Path) -> None:
    certs = certificate(tmp_path / "pi", "pi")
    options = shlex.split(os.environ.get("SFL_TEST_DOCKER_OPTIONS", ""))
    source = ["-v", f"{ROOT}:/src:ro"]
    container = subprocess.run(
        ["docker", "run", "-d", *options, *source, IMAGE, "sleep", "3600"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()

    def inside(*command: str) -> str:
        done = subprocess.run(
            ["docker", "exec", container, *command], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    install = ["/src/device_agent/board/install.sh", "--name", "pi", "--edge", "127.0.0.1:7001"]
    try:
        assert "done: put the data at" in inside(*install)
        before = inside("bash", "-c", STATE)
        assert inside(*install) == "everything is up to date\n"
        assert inside("bash", "-c", STATE) == before
        assert inside("stat", "-c", "%U %a", "/etc/sfl/tls") == "sfl 700\n"
        subprocess.run(["docker", "cp", certs, f"{container}:/root/pi"], check=True)
        secured = [*install[:3], "--certs", "/root/pi"]
        assert "writing /etc/sfl/device.toml" in inside(*secured)
        assert inside(*secured) == "everything is up to date\n"
        assert inside("stat", "-c", "%U %a", "/etc/sfl/tls/pi.key") == "sfl 600\n"
        data = f"/src/{(QUICKSTART / 'data/loft/train.jsonl').relative_to(ROOT)}"
        as_sfl = ["install", "-o", "sfl", "-g", "sfl", "-m", "600", data]
        inside(*as_sfl, "/var/lib/sfl/train.jsonl")
        doctor = "/opt/sfl/venv/bin/sfl doctor /etc/sfl/device.toml --format json || test $? = 1"
        report = json.loads(inside("runuser", "-u", "sfl", "--", "sh", "-c", doctor))
        checks = {check["name"]: check for check in report["checks"]}
        problems = [name for name, check in checks.items() if check["mark"] == "problem"]
        assert problems == ["link"], checks  # nobody listens at that port
        assert "compiled kernel" in checks["codec"]["text"]
        inside("/src/device_agent/board/uninstall.sh", "--purge")
        assert inside("bash", "-c", "ls -d /opt/sfl /etc/sfl /var/lib/sfl || true") == ""
    finally:
        subprocess.run(["docker", "rm", "-f", container], capture_output=True, check=True)
