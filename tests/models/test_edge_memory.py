"""An edge's memory budget: what it decides, and what it says where nothing fits."""

from __future__ import annotations

import random
import subprocess
import sys
import tomllib
from dataclasses import replace
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from edge_server.floor import Floor
from sfl.adapters.lora import LoraBank, build_manifest
from sfl.cli.launch.run import _asked, budgeted, resolved
from sfl.config import EdgeConfig, RunSettings, load_run
from sfl.config.codec import RoleCodecs
from sfl.config.size import read_size
from sfl.errors import ConfigError
from sfl.metrics.stats import NodeStats, PhaseTimes
from sfl.models.folder import ModelFolder, TensorEntry, checkpoint_tensors, open_model
from sfl.models.memory.edge_budget import EdgeChoice, fit_edge, needs, residents
from sfl.models.memory.footprint import QUANTISER_BYTES, Footprint
from sfl.plan import Holder, Plan
from sfl.rounds.assignment import assign
from sfl.rounds.values import EdgeBase
from sfl.stage.lean import _pieces
from sfl.stage.training import VanillaSession
from sfl.transport.device.end import EdgeEnd
from tests.house.federation import run, write_config
from tests.house.files import write_jsonl
from tests.house.fleets import completions, device, tiny
from tests.house.fleets import settings as small_run
from tests.house.paths import STORIES
from tests.house.reference import adapter, assert_same_bits
from tests.house.sessions import edge_model, messages
from tests.house.tiny_models import LAYERS, opened
from tests.house.twin import played


def settings(count: int = 4, **changes: object) -> RunSettings:
    return RunSettings.model_validate(
        {
            "model": {"path": "m", "max_length": 64},
            "training": {"batch_size": 256},
            "devices": [{"name": f"device-{n}"} for n in range(count)],
            **changes,
        }
    )


ALL = tuple(f"device-{n}" for n in range(4))


def total(run: RunSettings, again: tuple[str, ...], in_flight: int = 8, allowance: int = 4) -> int:
    choice = EdgeChoice(again, in_flight, allowance)
    return needs(opened("llama"), run, EdgeConfig(), choice).total


def everybody(run: RunSettings) -> tuple[str, ...]:
    return tuple(entry.name for entry in run.devices)


def activations(run: RunSettings, recompute: bool = False, in_flight: int = 8, **own: Any) -> int:
    choice = EdgeChoice(everybody(run) if recompute else (), in_flight, 4)
    return needs(opened("llama"), run, EdgeConfig(**own), choice).activations


def test_graphs_are_kept_where_they_fit_then_computed_again_then_refused() -> None:
    folder, run = opened("llama"), settings()
    kept = [total(run, (), *ways) for ways in ((1, 2), (1, 4), (8, 4))]
    again = [total(run, ALL, *ways) for ways in ((1, 1), (1, 2), (8, 4))]
    assert again == sorted(again) and kept == sorted(kept)
    assert again[-1] < total(run, (), 1, 1) < kept[0]
    for memory, expected in (
        (None, EdgeChoice((), 8, 4)),
        (kept[2], EdgeChoice((), 8, 4)),
        (kept[1], EdgeChoice((), 1, 4)),
        (kept[0], EdgeChoice((), 1, 2)),
        (kept[0] - 1, EdgeChoice(ALL, 8, 4)),
        (again[1], EdgeChoice(ALL, 1, 2)),
        (again[0], EdgeChoice(ALL, 1, 1)),
    ):
        assert fit_edge(folder, run, EdgeConfig(memory=memory)) == expected
    with pytest.raises(ConfigError, match=r"edge\.memory.* MB at least \(process"):
        fit_edge(folder, run, EdgeConfig(memory=again[0] - 1))
    assert fit_edge(folder, run, EdgeConfig(recompute=True)) == EdgeChoice(ALL, 8, 4)


def mixed(topology: str) -> RunSettings:
    """Cuts 2, 0, 1, 0: the second and the fourth device leave most blocks to the edge."""
    devices = [{"name": f"device-{n}", "cut_layer": cut} for n, cut in enumerate((2, 0, 1, 0))]
    return settings(run={"topology": topology}, devices=devices)


@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_only_the_deepest_devices_compute_again_where_that_is_enough(topology: str) -> None:
    folder, run = opened("llama"), mixed(topology)
    deepest = ("device-1", "device-3")
    third = ("device-1", "device-2", "device-3")
    kept, two, three = (total(run, again, 1, 2) for again in ((), deepest, third))
    assert three < two < kept
    assert fit_edge(folder, run, EdgeConfig(memory=two)).recompute == deepest
    assert fit_edge(folder, run, EdgeConfig(memory=two - 1)).recompute == third
    # Waiting graphs add up, so that one less may do; jobs that take turns do not.
    one = total(run, ("device-1",), 1, 2)
    assert (one < kept) == (topology == "u_shaped")
    if topology == "u_shaped":
        assert fit_edge(folder, run, EdgeConfig(memory=one)).recompute == ("device-1",)
    # What the settings ask for stays.
    own = EdgeConfig(memory=kept, recompute=("device-0",))
    assert "device-0" in fit_edge(folder, run, own).recompute


def test_what_has_arrived_counts_for_each_device() -> None:
    folder, four, eight = opened("llama"), settings(4), settings(8)
    rows = 256 * 64 * folder.hidden_size

    def messages_of(run: RunSettings, *ways: int) -> int:
        return needs(folder, run, EdgeConfig(), EdgeChoice((), *ways)).messages

    # And what each delivered of a round, a whole adapter, until the next one.
    manifest = build_manifest(folder, four.model.task, 0, four.lora)
    delivered = 4 * sum(prod(parameter.shape) for parameter in manifest.parameters)
    # Beyond what lies decoded, 16 bits a value or less; as they are where the codec is exact.
    beyond = messages_of(eight, 8, 4) - messages_of(four, 8, 4)
    assert beyond == 4 * (4 * 2 * rows + delivered)
    assert messages_of(four, 8, 4) - messages_of(four, 8, 3) == 4 * 2 * rows
    assert messages_of(four, 99, 1) - messages_of(four, 1, 1) == 3 * 2 * rows
    exact = settings(codec={"activation": "none", "gradient": "none"})
    assert messages_of(exact, 8, 4) - messages_of(exact, 8, 3) == 4 * 4 * rows


def tiers(adapters: str = "per_device", **sections: Any) -> RunSettings:
    stages = {"cuts": [2], "adapters": adapters}
    own: dict[str, Any] = {"run": {"topology": "three_tier"}, "training": {"local_steps": 5}}
    return settings(4, stages=stages, **{**own, **sections})


def test_a_shared_adapter_is_one_that_is_kept_at_each_step_of_a_round() -> None:
    """With its moments, and a gradient of each device; and only where the loss is."""
    folder, choice = opened("llama"), EdgeChoice((), 8, 4)

    def found(run: RunSettings, holder: Holder = "stage") -> Footprint:
        return needs(folder, run, EdgeConfig(), choice, holder)

    one = found(tiers()).adapter // 4
    assert found(tiers("shared")).adapter == one + (1 + 5) * one
    assert found(tiers()).optimizer == 4 * 3 * one
    assert found(tiers("shared")).optimizer == 3 * one + 4 * one
    assert found(tiers("shared"), "edge") == found(tiers(), "edge")


def test_who_waits_for_others_at_a_shared_adapter_holds_what_has_arrived() -> None:
    """As many activations are decoded there as may arrive, whatever `in_flight` says."""
    folder, run, rows = opened("llama"), tiers("shared"), 8 * 64 * opened("llama").hidden_size

    def messages_of(run: RunSettings, in_flight: int) -> int:
        choice = EdgeChoice((), in_flight, 4)
        return needs(folder, run, EdgeConfig(), choice, "stage").messages

    assert messages_of(run, 1) == messages_of(run, 99) == messages_of(tiers(), 16)
    assert messages_of(tiers(), 16) - messages_of(tiers(), 1) == 15 * 2 * rows


def test_what_arrives_at_a_stage_is_coded_for_the_hop() -> None:
    folder, rows = opened("llama"), 8 * 64 * opened("llama").hidden_size

    def messages_of(holder: Holder, **codec: str) -> int:
        return needs(
            folder, tiers(codec=codec), EdgeConfig(), EdgeChoice((), 8, 4), holder
        ).messages

    coded = messages_of("stage", activation="compact")
    assert (
        messages_of("stage", activation="compact", stage_activation="none") - coded == 8 * 2 * rows
    )
    exact = {"activation": "none", "evaluation": "compact"}
    assert messages_of("stage", **exact) - coded == 8 * 2 * rows  # the hop's is the link's
    assert messages_of("stage", **exact, stage_activation="int8") == coded
    assert messages_of("edge", **exact, stage_activation="int8") - coded == 8 * 2 * rows


def test_what_an_edge_adds_up_counts() -> None:
    """And nothing of it at a stage behind."""
    folder, choice = opened("llama"), EdgeChoice((), 8, 4)

    def messages_of(run: RunSettings, holder: Holder) -> int:
        return needs(folder, run, EdgeConfig(), choice, holder).messages

    own, manifest = tiers(), build_manifest(folder, "causal_lm", 0, tiers().lora)
    whole = 4 * sum(prod(parameter.shape) for parameter in manifest.parameters)
    adding = tiers(aggregation={"sums": "at_edges"})
    assert messages_of(adding, "edge") - messages_of(own, "edge") == 5 * whole
    assert messages_of(adding, "stage") == messages_of(own, "stage")


def test_a_stage_that_does_not_fit_names_its_own_settings() -> None:
    with pytest.raises(ConfigError, match=r"stage\.memory.*stages\.cuts.*stage\.dtype"):
        fit_edge(opened("llama"), tiers(), EdgeConfig(memory=10**6), "stage")


def test_devices_of_a_stage_leave_memory_where_their_steps_are_one_message() -> None:
    run, own = tiers(), EdgeConfig(resident_adapters=2)
    assert residents(run, own, "stage") == 2 and residents(run, own, "edge") == 4


def test_a_table_for_several_stages_is_what_each_of_them_needs(tmp_path: Path) -> None:
    """The second stage holds more blocks than the first: what the first needs is too little."""
    folder = open_model(str(tiny("llama", '{"num_hidden_layers": 8}')))
    values = small_run(folder.path, run={"topology": "three_tier"}, stages={"cuts": [2, 3]})
    values["devices"] = [device("a", completions(tmp_path / "a.jsonl", 1), 1)]
    config = resolved(load_run(write_config(tmp_path, values)))
    all_kept = EdgeChoice((), 1, 1)
    sizes = [
        needs(folder, config.settings, config.stage, all_kept, holder).total
        for holder in ("stage", "stage2")
    ]
    assert sizes[0] < sizes[1]
    tight = config.stage.model_copy(update={"memory": sizes[1] - 1})
    found = budgeted(config.model_copy(update={"stage": tight})).stage
    assert found.recompute


def test_an_edge_grants_no_more_credits_than_the_run_has() -> None:
    folder, run = opened("llama"), settings(network={"credits": 3})
    for own, granted in ((None, 3), (2, 2), (9, 3)):
        assert fit_edge(folder, run, EdgeConfig(credits=own)).credits == granted


def test_computing_again_for_an_unknown_device_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"edge\.recompute = 'attic'.*device-0"):
        fit_edge(opened("llama"), settings(), EdgeConfig(recompute=("attic",)))


def test_a_job_of_several_devices_is_several_times_as_large() -> None:
    lean = {"training": {"batch_size": 256, "computation": "lean"}}
    run = settings(**lean)
    alone, both = (activations(run, batch_devices=count) for count in (1, 2))
    assert 1.5 * alone < both <= 2 * alone
    # No more go together than there are of one cut, and lie decoded; only `lean` batches do.
    assert activations(run, batch_devices=9) == activations(run, batch_devices=4)
    assert activations(run, batch_devices=2, in_flight=1) == alone
    apart = settings(devices=[{"name": f"d{n}", "cut_layer": n} for n in range(3)], **lean)
    assert activations(apart, batch_devices=3) == activations(apart)
    padded = settings(training={"batch_size": 256, "computation": "reference"})
    assert activations(padded, batch_devices=2) == activations(padded)


def test_one_base_computes_again_for_one_device_and_not_for_the_other() -> None:
    run = settings(devices=[{"name": n} for n in ("attic", "porch")])
    folder, model = opened("llama"), edge_model("llama", "causal_lm", packed=True)[0]
    bank = LoraBank(model, run.lora, run.lora.target_modules)
    base = EdgeBase(folder.num_layers)
    (message,) = messages("causal_lm", folder.hidden_size, 1)
    again, live = (
        VanillaSession(
            name,
            assign(run, base, name),
            model,
            bank,
            run,
            NodeStats("e", "edge"),
            recompute=recompute,
        )
        for name, recompute in (("attic", True), ("porch", False))
    )
    kept = []
    for session in (again, live, again):
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            session.blocks.forward(message)
        kept.append(sum(sizes))
    assert kept[0] == kept[2] < kept[1] / 4


def test_ranks_count_each_by_itself() -> None:
    ranks = [{"name": f"d{n}", "rank": rank} for n, rank in enumerate((2, 8))]
    run = settings(aggregation={"strategy": "flexlora"}, devices=ranks)
    choice = EdgeChoice((), 8, 4)
    both = needs(opened("llama"), run, EdgeConfig(), choice)
    one = needs(opened("llama"), run, EdgeConfig(resident_adapters=1), choice)
    assert both.adapter * 4 == one.adapter * 5


def test_what_a_device_adds_is_its_adapter_and_optimizer() -> None:
    folder = opened("llama")
    few, many = (needs(folder, settings(n), EdgeConfig(), EdgeChoice((), 8, 4)) for n in (2, 10))
    assert many.weights == few.weights and many.activations == few.activations
    assert many.adapter == 5 * few.adapter and many.optimizer == 3 * many.adapter


def test_lean_needs_less_than_the_reference_and_waiting_graphs_cost() -> None:
    lean = activations(settings(training={"computation": "lean"}))
    assert lean <= activations(settings(training={"computation": "reference"}))
    waiting = settings(run={"topology": "u_shaped"})
    assert activations(waiting) > 2 * activations(waiting, recompute=True)


def test_a_quantised_base_needs_its_library_and_one_layer_restored() -> None:
    folder, run = opened("llama"), settings()
    plain, small = (
        needs(folder, run, EdgeConfig(quantised=kind), EdgeChoice((), 8, 4))
        for kind in ("none", "nf4")
    )
    linear = [e for e in checkpoint_entries(folder) if len(e.shape) == 2 and ".layers." in e.name]
    largest = max(entry.shape[0] * entry.shape[1] for entry in linear)
    assert small.base == plain.base + QUANTISER_BYTES
    assert small.activations == plain.activations + 4 * largest
    assert small.weights < plain.weights


def checkpoint_entries(folder: ModelFolder) -> list[TensorEntry]:
    layout = folder.family.layout(folder.config, "causal_lm")
    return list(checkpoint_tensors(folder, layout).values())


@pytest.mark.parametrize("vocab", [1000, 151_936])
def test_a_piece_of_the_logits_is_foretold_as_it_is_taken(
    vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, run = opened("llama"), settings(training={"batch_size": 256, "computation": "lean"})
    wide = replace(folder, sizes=replace(folder.sizes, vocab_size=vocab))
    model = SimpleNamespace(vocab_size=vocab)
    (first, *_) = _pieces(model, 256 * 64)  # type: ignore[arg-type]
    piece = (first.stop - first.start) * vocab
    with_logits = needs(wide, run, EdgeConfig(), EdgeChoice((), 8, 4)).activations
    monkeypatch.setattr("sfl.models.memory.footprint.LOGIT_COPIES", 0)
    without = needs(wide, run, EdgeConfig(), EdgeChoice((), 8, 4)).activations
    assert with_logits - without == 3 * 4 * piece


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MB", 512_000_000), ("1.5 GiB", 1610612736), ("7k", 7000), ("123", 123), (9, 9)],
)
def test_sizes(text: object, size: int) -> None:
    assert EdgeConfig.model_validate({"memory": text}).memory == size == read_size(text)


@pytest.mark.parametrize("text", ["much", "-1GB", "1TB", "", 0, "0", True, "9" * 400, 10**400])
def test_sizes_that_are_none(text: object) -> None:
    with pytest.raises(ValueError, match="memory"):
        EdgeConfig.model_validate({"memory": text})


def run_file(folder: Path, memory: str) -> Path:
    path, data = folder / "run.toml", folder / "train.jsonl"
    data.write_text('{"text": "one two three four five"}\n' * 12)
    content = {
        "model": {"path": str(tiny("llama")), "max_length": 64},
        "edge": {"memory": memory},
        "data": {"train": str(data)},
        "devices": [{"name": "attic"}],
    }
    path.write_text(tomli_w.dumps(content))
    return path


def test_the_choice_is_in_the_effective_settings(tmp_path: Path) -> None:
    config = load_run(run_file(tmp_path, "2GB"))
    roomy = budgeted(config)
    assert (roomy.edge.recompute, roomy.edge.in_flight, roomy.edge.credits) == (False, 8, 4)
    folder = opened("llama")
    tight = needs(folder, config.settings, config.edge, EdgeChoice(("attic",), 1, 1)).total
    edge = config.edge.model_copy(update={"memory": tight})
    narrow = budgeted(config.model_copy(update={"edge": edge}))
    assert (narrow.edge.recompute, narrow.edge.in_flight, narrow.edge.credits) == (True, 8, 1)
    assert budgeted(narrow).edge == narrow.edge  # deciding again changes nothing


@pytest.mark.process
def test_a_run_that_does_not_fit_is_refused_before_it_starts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sfl.cli", "run", str(run_file(tmp_path, "100MB"))],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=120,
    )
    assert done.returncode != 0
    assert "edge.memory" in done.stderr and "at least" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/*"))


# -- what an edge keeps ----------------------------------------------------------------------------


def test_devices_of_one_cut_share_the_files_they_are_served(tmp_path: Path) -> None:
    folder = opened("llama")
    base: Any = SimpleNamespace(folder=folder, settings=settings())
    nothing: Any = None
    floor = Floor(base, nothing, nothing, nothing)
    for name, cut in CUTS.items():
        session: Any = SimpleNamespace(plan=Plan.split(folder.num_layers, cut, 0, "vanilla"))
        floor.sessions[name] = session
    attic, porch, shed = (floor.files(name) for name in CUTS)
    assert attic is porch is not shed


CUTS = {"attic": 1, "porch": 1, "shed": 2}


@pytest.mark.parametrize("spec", ["none", "int8"])
def test_a_device_s_part_is_kept_only_where_it_will_be_coded_against(spec: str) -> None:
    run = settings(devices=[{"name": "attic"}])
    own = assign(run, EdgeBase(LAYERS), "attic", 1)
    end = EdgeEnd("attic", own, run, PhaseTimes(), peer_compiled=True)
    codecs = RoleCodecs.model_validate(dict.fromkeys(RoleCodecs.model_fields, spec))
    end.begin_round(replace(own, codecs=codecs))
    values = {"a": np.ones((2, 3), np.float32)}
    assert list(end.round_frames(values, 1))
    assert end.changes.held == ({} if spec == "none" else values)


def test_an_open_precision_is_measured_where_the_edge_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def measure(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="bfloat16\n", stderr="")

    monkeypatch.setattr("sfl.cli.launch.run.subprocess.run", measure)
    _asked.cache_clear()
    config = load_run(run_file(tmp_path, "2GB"))
    own = {"dtype": "auto", "device": ("cuda:1", "cuda:0"), "threads": 1}
    config = config.model_copy(update={"edge": config.edge.model_copy(update=own)})
    assert resolved(config).edge.dtype == "bfloat16"
    _asked.cache_clear()
    assert [command[-2:] for command in commands] == [["1", "cuda:1"]]


# -- real runs -------------------------------------------------------------------------------------


@pytest.mark.process
@pytest.mark.skipif(not STORIES.is_dir(), reason=f"{STORIES} is not here")
def test_a_budget_is_kept_by_computing_again_for_one_of_two_devices(tmp_path: Path) -> None:
    text = " ".join(random.Random(0).choices(["once", "upon", "time", "cat", "sun"], k=150))
    texts = write_jsonl(tmp_path / "texts.jsonl", [{"text": text}] * 100)
    # Cut 0 leaves so much to the edge that the whole of it would not do; cut 4 next to nothing.
    values = {
        "run": {"rounds": 1},
        "model": {"path": str(STORIES), "max_length": 128},
        "training": {"batch_size": 96, "local_steps": 2, "micro_batches": 1},
        "data": {"eval_fraction": 0.02, "blocks": "first"},
        "evaluation": {"max_examples": 1, "full": False},
        "codec": {"activation": "none", "gradient": "none"},
        "devices": [
            {"name": name, "cut_layer": cut, "threads": 1, "train": str(texts)}
            for name, cut in (("deep", 0), ("flat", 4))
        ],
    }
    run_settings, folder = RunSettings.model_validate(values), open_model(str(STORIES))
    wanted = EdgeChoice(("deep",), 1, 2)
    budget = needs(folder, run_settings, EdgeConfig(), wanted).total
    outcome = run(tmp_path, {**values, "edge": {"memory": budget}}, alone=True)
    assert outcome.code == 0, outcome.output
    edge = tomllib.loads((outcome.folder / "config.toml").read_text())["edge"]
    assert (edge["recompute"], edge["credits"]) == (["deep"], 2)
    assert "computed again for deep" in outcome.logs()
    (node,) = outcome.summary["edges"]
    assert node["peak_rss_bytes"] < budget
    # Without that it would not have been: a forked edge takes 100 MB less than is foretold.
    kept = needs(folder, run_settings, EdgeConfig(), EdgeChoice((), 1, 2)).total
    assert kept > budget + 150_000_000


@pytest.mark.process
def test_fewer_credits_reach_the_device_and_change_no_bit(tmp_path: Path) -> None:
    found = []
    for number, own in enumerate(({}, {"credits": 1})):
        folder = tmp_path / str(number)
        values = small_run(tiny("llama"), training={"micro_batches": 4}, edge=own)
        data = completions(folder / "a.jsonl", 0)
        outcome = played(folder, {**values, "devices": [device("a", data, 1)]})
        assert outcome.code == 0, outcome.output  # an edge closes the stream of who sends more
        found.append(adapter(outcome))
        assert f"up to {4 - 3 * number} of one device are in flight" in outcome.logs()
    assert_same_bits(*found)
