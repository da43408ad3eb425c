"""Reading TOML into settings, with errors that name the field, the value and the fix."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import ValidationError

from sfl.config.base import Section
from sfl.config.node import DeviceConfig, EdgeConfig, StageConfig
from sfl.config.planner import ADVICE, MOVING
from sfl.config.plugins import require_installed, with_packages
from sfl.config.run import RunConfig
from sfl.config.sections import RunSection
from sfl.config.simulate import with_fleet
from sfl.config.wording import as_config_error, did_you_mean, unknown_key
from sfl.errors import ConfigError
from sfl.node.paths import amiss, is_there, nothing_there, require_utf8
from sfl.node.textfile import NotText, read_text
from sfl.plan import TIERED

S = TypeVar("S", bound=Section)

DATA_SUFFIXES = {".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet"}


def load_run(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a run's file; `overrides` are `section.key=value`, values in TOML syntax or bare text.

    Relative paths in the file are relative to the file. Raises ConfigError.
    """
    return _run_of(_run_table(path, overrides))


def load_planned(path: Path, overrides: Iterable[str] = ()) -> RunConfig:
    """The same for who chooses cuts before a run: one of three tiers keeps them, once it has begun.
    Raises ConfigError."""
    table = _run_table(path, overrides)
    planner, run = table.get("planner"), table["run"]
    if not isinstance(planner, dict) or not isinstance(run, dict):
        return _run_of(table)
    policy = planner.get("policy")
    if run.get("topology") not in TIERED or policy not in MOVING:
        return _run_of(table)
    chosen = {"policy": policy, "costs": str(planner.get("costs", ""))}
    rest = {name: value for name, value in planner.items() if name != "costs"}
    config = _run_of({**table, "planner": {**rest, "policy": ADVICE}})
    return config.model_copy(update={"planner": config.planner.model_copy(update=chosen)})


def load_simulated(
    path: Path, overrides: Iterable[str] = (), shown: Mapping[str, Any] | None = None
) -> RunConfig:
    """The same for a run that is simulated, with all devices of its fleet.

    `shown` is what a real run has shown, for what the file does not state. Raises ConfigError.
    """
    return _run_of(with_fleet(_run_table(path, overrides), shown))


def _run_table(path: Path, overrides: Iterable[str]) -> dict[str, Any]:
    table = _read(path)
    _anchor_folders(table, path.resolve().parent)
    if isinstance(run := table.setdefault("run", {}), dict):
        run.setdefault("output_dir", str(RunSection().output_dir.absolute()))
    table = with_overrides(table, overrides)
    _anchor_paths(table, path.resolve().parent)
    return table


def _run_of(table: dict[str, Any]) -> RunConfig:
    require_installed(table)
    return with_packages(_validate(RunConfig, table))


def read_run(text: str) -> RunConfig:
    """A run's settings from TOML that came from elsewhere: its paths stay. Raises ConfigError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("config", "", f"not valid TOML: {error}", "Fix it.") from None
    return _run_of(table)


def tables_of(name: str, overrides: Iterable[str]) -> dict[str, Any]:
    """The keys of one section that stands in no file. Raises ConfigError."""
    table = with_overrides({name: {}}, overrides)
    for key in table:
        if key != name:
            raise unknown_key(key, [name], "", table[key])
    section: dict[str, Any] = table[name]
    return section


def validated(kind: type[S], table: Mapping[str, Any], prefix: str) -> S:
    """A section's settings. Raises ConfigError."""
    return _validate(kind, table, prefix)


def load_edge(path: Path, overrides: Iterable[str] = ()) -> EdgeConfig:
    """Read an edge's file: an `[edge]` table."""
    return _load_server(EdgeConfig, path, overrides, "edge")


def load_stage(path: Path, overrides: Iterable[str] = ()) -> StageConfig:
    """Read a stage's file: a `[stage]` table, with the keys of an edge's."""
    return _load_server(StageConfig, path, overrides, "stage")


def _load_server(kind: type[S], path: Path, overrides: Iterable[str], section: str) -> S:
    table = _read(path)
    _anchor_folders(table, path.resolve().parent)
    table = with_overrides(table, overrides)
    server = _section(table, section, path)
    _anchor(server, "model", path.resolve().parent)
    _anchor_secrets(server, path.resolve().parent)
    anchored_served(server.get("serve"), path.resolve().parent)
    return _validate(kind, server, prefix=f"{section}.")


def load_device(path: Path, overrides: Iterable[str] = ()) -> DeviceConfig:
    """Read a device's file: a `[device]` table."""
    table = _read(path)
    _anchor_folders(table, path.resolve().parent)
    table = with_overrides(table, overrides)
    device = _section(table, "device", path)
    folder = path.resolve().parent
    _anchor_local(device, folder)
    _anchor_own(device, folder)
    return _validate(DeviceConfig, device, prefix="device.")


def read_tables(path: Path, overrides: Iterable[str], names: tuple[str, ...]) -> dict[str, Any]:
    """A node's file of several tables, paths made absolute as ever. Raises ConfigError."""
    table = _read(path)
    folder = path.resolve().parent
    _anchor_folders(table, folder)
    table = with_overrides(table, overrides)
    for key in table:
        if key not in names:
            raise unknown_key(key, list(names), "", table[key])
    for section in (table.get("edge"), table.get("device")):
        if isinstance(section, dict):
            _anchor(section, "model", folder)
            _anchor_secrets(section, folder)
    return table


def anchored(table: Any, key: str, path: Path) -> None:
    """Make a path within a file's table absolute, by the file it stands in."""
    if isinstance(table, dict) and key in table:
        table[key] = _beside(path.resolve().parent, table[key])


def anchored_served(table: Any, folder: Path) -> None:
    """Make absolute what a table of `ServeSettings` names."""
    adapters = table.get("adapters") if isinstance(table, dict) else None
    if isinstance(adapters, dict):
        table["adapters"] = {name: _beside(folder, path) for name, path in adapters.items()}
    if isinstance(table, dict) and "spill_dir" in table:
        table["spill_dir"] = _beside(folder, table["spill_dir"])


def anchored_model(table: Any, key: str, path: Path) -> None:
    """The same for a model, which may be a name on the hub."""
    if isinstance(table, dict):
        _anchor(table, key, path.resolve().parent)


def dump_toml(settings: Section) -> str:
    """Settings as TOML that reads back to the same values."""
    return tomli_w.dumps(_without_none(settings.model_dump(mode="json")))


def with_overrides(table: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """`table` with each `section.key=value` put in; list entries go by number or `name`."""
    for override in overrides:
        dotted, separator, text = override.partition("=")
        if not separator or not dotted.strip():
            raise ConfigError("--set", override, "is not section.key=value", "Write a = b.")
        *parents, last = dotted.strip().split(".")
        target: Any = table
        for step in parents:
            target = _step_into(target, step, dotted)
        if not isinstance(target, dict):
            target = _step_into(target, last, dotted)  # says what is wrong
            raise ConfigError("--set", dotted, "is a table, not a value", "Name a key within it.")
        target[last] = _toml_value(text.strip())
    return table


def _step_into(target: Any, step: str, dotted: str) -> Any:
    if isinstance(target, list):
        tables = [entry for entry in target if isinstance(entry, dict)]
        for position, entry in enumerate(tables):
            if step in (str(position), entry.get("name")):
                return entry
        if not tables:
            raise ConfigError("--set", dotted, f"{target} has no tables", "Set the whole list.")
        names = [str(entry.get("name")) for entry in tables]
        fix = f"{did_you_mean(step, names)}Known entries: {', '.join(names)}."
        raise ConfigError("--set", dotted, f"no entry {step!r}", fix)
    if not isinstance(target, dict):
        raise ConfigError("--set", dotted, f"{step!r} is inside {target!r}, a value", "Cut it.")
    return target.setdefault(step, {})


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _read(path: Path) -> dict[str, Any]:
    if wrong := amiss(path, "file"):
        fix = "Write one with `sfl init`." if nothing_there(path) else "Name a file."
        raise ConfigError("config", str(path), wrong, fix)
    try:
        return tomllib.loads(read_text(path))
    except OSError as error:
        raise ConfigError(
            "config", str(path), f"cannot be read: {error.strerror or error}", "Check the path."
        ) from None
    except NotText as error:
        problem = f"not valid TOML: {error.problem}"
        raise ConfigError("config", str(path), problem, error.fix) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("config", str(path), f"not valid TOML: {error}", "Fix it.") from None


def _section(table: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    for key in table:
        if key != name:
            raise unknown_key(key, [name], "", table[key])
    section = table.get(name)
    if not isinstance(section, dict):
        raise ConfigError(name, str(path), "the table is missing", f"Start it with [{name}].")
    return section


def _validate(kind: type[S], table: Mapping[str, Any], prefix: str = "") -> S:
    _require_utf8(table, prefix)
    try:
        return kind.model_validate(table)
    except ValidationError as error:
        raise as_config_error(kind, error, table, prefix) from None


def _require_utf8(value: Any, field: str) -> None:
    """Raise ConfigError for a text, at any depth, that no file could hold."""
    if isinstance(value, str):
        require_utf8(value, field.strip("."))
    elif isinstance(value, Mapping):
        for key, item in value.items():
            _require_utf8(item, f"{field.rstrip('.')}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            named = item.get("name", number) if isinstance(item, Mapping) else number
            _require_utf8(item, f"{field}.{named}")


def _anchor_folders(table: dict[str, Any], folder: Path) -> None:
    """Make absolute, in a file as it was read, the folders that are written to.

    A run that names none is where the command is typed.
    """
    sections = [table.get(name) for name in ("run", "edge", "stage", "device")]
    devices = table.get("devices")
    for section in [*sections, *(devices if isinstance(devices, list) else [])]:
        for key in ("output_dir", "cache_dir", "swap_dir"):
            if isinstance(section, dict) and key in section:
                section[key] = _beside(folder, section[key])


def _anchor_paths(table: dict[str, Any], folder: Path) -> None:
    models = (("model", "path"), ("edge", "model"), ("stage", "model"))
    teachers = (("distil", "teacher"), ("edge", "teacher"))
    for section, key in (*models, *teachers, ("data", "train"), ("data", "eval")):
        if isinstance(table.get(section), dict):
            _anchor(table[section], key, folder)
    for section in ("cloud", "edge", "stage"):
        _anchor_secrets(table.get(section), folder)
    if isinstance(edge := table.get("edge"), dict):
        anchored_served(edge.get("serve"), folder)
    devices = table.get("devices")
    for device in devices if isinstance(devices, list) else []:
        if isinstance(device, dict):
            _anchor_local(device, folder)


def _anchor_local(table: dict[str, Any], folder: Path) -> None:
    for key in ("train", "eval", "model", "teacher"):
        _anchor(table, key, folder)
    _anchor_secrets(table, folder)


def _anchor_own(table: dict[str, Any], folder: Path) -> None:
    """Make absolute what stands in a device's own file only."""
    for key in ("shared_train", "shared_eval"):
        _anchor(table, key, folder)
    consent = table.get("consent")
    if isinstance(consent, dict) and isinstance(dirs := consent.get("data_dirs"), list):
        consent["data_dirs"] = [_beside(folder, path) for path in dirs]


def _beside(folder: Path, path: Any) -> Any:
    """Absolute, by the file it stands in; `~` is for whoever uses the path."""
    return str(folder.resolve() / path) if _is_relative(path) else path


def _is_relative(path: Any) -> bool:
    return isinstance(path, str) and path != "" and path[0] != "~" and not Path(path).is_absolute()


def _anchor_secrets(table: Any, folder: Path) -> None:
    """Make a node's paths of certificates and of its password file absolute."""
    for name in ("tls", "metrics"):
        section = table.get(name) if isinstance(table, dict) else None
        for key in ("ca", "cert", "key", "password_file"):
            if isinstance(section, dict) and key in section:
                section[key] = _beside(folder, section[key])


def _anchor(table: dict[str, Any], key: str, folder: Path) -> None:
    """Make a relative path absolute where it exists beside the file; a hub name stays as it is."""
    value = table.get(key)
    if isinstance(value, str) and value and _is_relative(value):
        beside = folder / value
        if is_there(beside) or value.startswith(".") or Path(value).suffix in DATA_SUFFIXES:
            table[key] = str(beside.resolve() if is_there(beside) else beside.absolute())


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value
