"""Settings: read, overridden, refused with a line that teaches, written back, documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfl.cli.launch.run import resolved
from sfl.config import dump_toml, load_device, load_edge, load_run
from sfl.errors import ConfigError
from sfl.node.process import cores
from tests.house.paths import ROOT
from tools.configuration_page import document

MINIMAL = '[model]\npath = "m"\n[[devices]]\nname = "a"\n[[devices]]\nname = "b"\n'


def written(folder: Path, text: str = MINIMAL) -> Path:
    path = folder / "run.toml"
    path.write_text(text)
    return path


def test_the_documentation_is_in_step_with_the_settings() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == document(), "run: python -m tools.configuration_page > docs/configuration.md"


def test_the_template_of_init_is_a_valid_run(tmp_path: Path) -> None:
    from sfl.cli.init import TEMPLATE

    config = load_run(written(tmp_path, TEMPLATE.format(name="x")))
    assert [device.name for device in config.devices] == ["alpha", "beta"]


@pytest.mark.parametrize(
    "name", ["quickstart/homes.toml", "e2e/stories.toml", "emotion/minilm.toml"]
)
def test_every_shipped_example_is_a_valid_run(name: str) -> None:
    assert load_run(ROOT / "examples" / name).devices


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("run.roundz=3", ("run.roundz = 3", "unknown key", "'rounds'")),
        ("training.learning_rate=nan", ("training.learning_rate = nan", "not a finite number")),
        ("network.round_timeout=1e10", ("network.round_timeout = 10000000000.0", "at most 1e+09")),
        ("network.join_grace=1e300", ("network.join_grace = 1e+300", "at most 1e+09")),
        ("edge.connect_timeout=1e10", ("edge.connect_timeout = 10000000000.0", "at most 1e+09")),
        (
            "devices.a.pause.check_interval=1e10",
            ("check_interval = 10000000000.0", "at most 1e+09"),
        ),
        (
            "network.heartbeat_interval=60",
            ("network.idle_timeout", "every 60 s (heartbeat_interval)"),
        ),
        ("network.round_timeout=inf", ("network.round_timeout = inf", "not a finite number")),
        (
            "aggregation.max_update_norm=x",
            ("aggregation.max_update_norm = 'x'", "is not a number, nor 'auto'"),
        ),
        ("training.micro_batches=x", ("training.micro_batches = 'x'", "number, nor 'auto'")),
        ("training.learning_rate=-1", ("training.learning_rate = -1", "greater than 0")),
        ("run.rounds=many", ("run.rounds = 'many'", "not a whole number")),
        ("devices.a.cut=1", ("cut = 1", "unknown key", "'cut_layer'")),
        ("devices.z.cut_layer=1", ("no entry 'z'", "Known entries: a, b")),
        ("run.min_devices=3", ("run.min_devices = 3", "number of devices (2)")),
        ("devices.b.name=a", ("devices", "is given twice")),
        ("nonsense", ("--set = 'nonsense'", "section.key=value")),
        ("model.task=sequence_classification", ("model.labels", "at least two")),
        ("devices.a.rank=4", ("devices.a.rank = 4", "lora.rank (8)", "'flexlora'")),
        ("devices.b.rank=16", ("devices.b.rank = 16", "at most lora.rank (8)")),
        ("aggregation.strategy=fedsgd", ("aggregation.strategy = 'fedsgd'", "'fedavg', 'fedprox'")),
        ("aggregation.strategy=krum", ("strategy = 'krum'", "needs 5", "has 2", "byzantine")),
        ("aggregation.strategy=median", ("strategy = 'median'", "needs 3 devices")),
        ("aggregation.mu=0.1", ("aggregation.mu = 0.1", "'fedavg' does not read it", "fedprox")),
        ("aggregation.trim_fraction=0.5", ("trim_fraction = 0.5", "less than 0.5")),
        ("aggregation.momentum=1.0", ("momentum = 1.0", "less than 1")),
        ("devices.a.rank=4", ("devices.a.rank = 4", "'flora'")),
        ("codec.activation=auto", ("codec.", "activation", '"auto" is for both')),
        ("devices.a.codec.gradient=auto", ("devices.a.codec", "name a codec here")),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_a_fix(
    tmp_path: Path, override: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(written(tmp_path), [override])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "model.dtype=bfloat16",
        "model.dtype=auto",
        "edge.quantised=nf4",
        "edge.dtype=bfloat16",
        "devices.b.quantised=int8",
        "devices.a.dtype=auto",
        "codec.adapter=int8",
        "devices.a.codec.adapter=int8 | zstd",
    ],
)
def test_what_cannot_be_folded_into_is_refused(tmp_path: Path, override: str) -> None:
    load_run(written(tmp_path), [override])
    with pytest.raises(ConfigError) as caught:
        load_run(written(tmp_path), ["aggregation.strategy=flora", override])
    field, _, value = override.partition("=")
    assert f"{field} = {value!r}: flora adds" in str(caught.value)
    assert any(fix in str(caught.value) for fix in ('use "float32"', 'leave it at "none"'))


def test_a_strategy_bounds_ranks_and_devices(tmp_path: Path) -> None:
    five = MINIMAL + "".join(f'[[devices]]\nname = "{name}"\n' for name in "cde")
    mixed = load_run(written(tmp_path), ["aggregation.strategy=flexlora", "devices.a.rank=2"])
    assert (mixed.rank("a"), mixed.rank("b")) == (2, 8)
    assert (mixed.scaling("a"), mixed.scaling("b")) == (8.0, 2.0)
    path = written(tmp_path, five)
    assert load_run(path).min_devices == 4
    krum = ["aggregation.strategy=multi_krum"]
    assert load_run(path, krum).min_devices == 5
    with pytest.raises(ConfigError, match=r"run\.min_devices = 4: multi_krum needs 5 devices"):
        load_run(path, [*krum, "run.min_devices=4"])
    with pytest.raises(ConfigError, match=r"aggregation\.selected = 5: at most 4"):
        load_run(path, [*krum, "aggregation.selected=5"])


def test_two_lengths_of_a_round_exclude_each_other(tmp_path: Path) -> None:
    options = ["training.local_steps=1", "training.local_epochs=1"]
    with pytest.raises(ConfigError, match="local_steps"):
        load_run(written(tmp_path), options)


@pytest.mark.parametrize("text", ["[model", "\xff"])
def test_a_file_that_is_not_toml(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_run(tmp_path / "run.toml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sfl init"):
        load_run(tmp_path / "none.toml")


def test_relative_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    config = load_run(written(tmp_path), ["data.train=x.jsonl"])
    assert config.model.path == str(tmp_path / "m")
    assert str(config.data.train) == str(tmp_path / "x.jsonl")


@pytest.mark.parametrize("name", ["org/model", "org/model-v1.0"])
def test_a_hub_name_stays_a_hub_name(tmp_path: Path, name: str) -> None:
    assert load_run(written(tmp_path), [f"model.path={name}"]).model.path == name


def test_effective_settings_read_back_to_the_same_values(tmp_path: Path) -> None:
    config = resolved(load_run(written(tmp_path)))
    again = load_run(written(tmp_path, dump_toml(config)))
    assert again == config
    assert config.edge.threads == cores()
    assert {device.threads for device in config.devices} == {max(1, cores() // 2)}


def test_only_shared_settings_travel_to_nodes(tmp_path: Path) -> None:
    settings = load_run(written(tmp_path)).settings
    assert not hasattr(settings, "cloud")
    assert not hasattr(settings, "edge")


def test_node_files(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('[edge]\nname = "e"\ncloud = "h:1"\n')
    assert load_edge(path).cloud == "h:1"
    path.write_text('[device]\nname = "d"\nedge = "h:1"\ntrain = "d.csv"\n')
    assert load_device(path).train == tmp_path / "d.csv" or str(load_device(path).train) == str(
        tmp_path / "d.csv"
    )
    with pytest.raises(ConfigError, match="Start it with"):
        load_edge(written(tmp_path, ""))
    with pytest.raises(ConfigError, match="unknown key"):
        load_edge(path)
