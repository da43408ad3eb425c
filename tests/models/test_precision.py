"""A node's precision and quantised base: what it computes, what it refuses, and a run over it."""

from __future__ import annotations

import copy
import importlib.util
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from sfl.adapters.lora import LoraBank
from sfl.cli.launch.run import _asked, resolved
from sfl.config import DeviceConfig, EdgeConfig, LoraSettings, ModelSettings, RunConfig
from sfl.errors import ConfigError
from sfl.models.families.family import Task
from sfl.models.folder import ModelFolder, open_model
from sfl.models.quantised import QuantisedLinear, check_quantised
from sfl.models.span import SpanModel, build_span
from sfl.plan import Plan, Span
from sfl.stage.base import BaseForm, decided, settle
from sfl.stage.loss import training_loss
from tests.house.federation import SFL, run, write_config
from tests.house.files import write_jsonl
from tests.house.named import Runs
from tests.house.paths import ROOT, STORIES
from tests.house.tiny_models import CASES, LABELS, LAYERS, batch, busy_values, manifest_of, opened

LORA = LoraSettings(rank=4, alpha=8.0)
PLANS = [Plan.split(LAYERS, 1, 0, "vanilla"), Plan.split(LAYERS, 1, 1, "u_shaped")]
TOLERANCE = 1e-5
"""Relative difference of loss and gradients from those of the restored weights, in float32."""

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


def build(folder: ModelFolder, span: Span, task: Task, form: BaseForm) -> SpanModel:
    return build_span(
        folder,
        span,
        task=task,
        num_labels=LABELS,
        dtype=form.weights,
        autocast=form.autocast,
        quantised=form.quantised,
    )


def restored(model: SpanModel) -> SpanModel:
    """The same span with every quantised layer as a plain one, over its restored weights."""
    plain = copy.deepcopy(model)
    for name, layer in list(plain.named_modules()):
        if isinstance(layer, QuantisedLinear):
            linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            linear.weight = nn.Parameter(layer.restored(torch.float32), requires_grad=False)
            linear.bias = layer.bias
            path, _, attribute = name.rpartition(".")
            setattr(plain.get_submodule(path), attribute, linear)
    return plain


def step(
    models: list[SpanModel], plan: Plan, folder: ModelFolder, task: Task, size: int = 61
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(loss, gradients of LoRA and of each boundary) through spans that lie apart."""
    values = busy_values(manifest_of(folder, task, LORA))
    parts = [s for s in (plan.front, plan.middle, plan.tail) if s is not None]
    adapters = []
    for model, span in zip(models, parts, strict=True):
        bank = LoraBank(model.train(), LORA)
        adapter = bank.add("kitchen", span)
        adapter.load({name: values[name] for name in adapter.parameters})
        bank.activate(adapter)
        adapters.append(adapter)
    ids, lengths, labels = batch((9, 5, 3), task)
    hidden = models[0].blocks(models[0].embed(ids, lengths), lengths)
    sent: list[tuple[torch.Tensor, torch.Tensor]] = []
    for model in models[1:]:
        received = hidden.detach().clone().requires_grad_()
        sent.append((hidden, received))
        hidden = model.blocks(received, lengths)
    logits = models[-1].head(hidden, lengths)
    loss = training_loss(logits, labels, task, folder.vocab_size, None)
    loss.backward()  # type: ignore[no-untyped-call]
    found = {}
    for number, (output, received) in reversed(list(enumerate(sent))):
        assert received.grad is not None
        found[f"boundary {number}"] = received.grad
        output.backward(received.grad)  # type: ignore[no-untyped-call]
    for adapter in adapters:
        for name, parameter in adapter.parameters.items():
            assert parameter.grad is not None, name
            found[name] = parameter.grad
    return loss.detach(), found


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        size = float(gradient.norm())
        assert size > 0, name
        assert float((found[name] - gradient).norm()) <= TOLERANCE * size, name


# -- a quantised base ----------------------------------------------------------------------------


@needs_bitsandbytes
@pytest.mark.parametrize("quantised", ["nf4", "int8"])
@pytest.mark.parametrize("plan", PLANS, ids=["vanilla", "u_shaped"])
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_it_computes_what_its_restored_weights_do(
    kind: str, task: Task, plan: Plan, quantised: Any
) -> None:
    """Every family (GPT-2's transposed layers too), every side, both topologies."""
    folder = opened(kind)
    spans = [s for s in (plan.front, plan.middle, plan.tail) if s is not None]
    models = [build(folder, span, task, BaseForm(quantised=quantised)) for span in spans]
    plain = [restored(model) for model in models]
    assert_every_block_is_quantised(models)
    loss, gradients = step(models, plan, folder, task)
    wanted_loss, wanted = step(plain, plan, folder, task)
    torch.testing.assert_close(loss, wanted_loss, rtol=TOLERANCE, atol=0)
    assert_close(gradients, wanted)


def assert_every_block_is_quantised(models: list[SpanModel]) -> None:
    for model in models:
        linear = {
            name: type(module)
            for name, module in model.model.named_modules()
            if isinstance(module, nn.Linear | QuantisedLinear) or type(module).__name__ == "Conv1D"
        }
        inside = {n for n in linear if n.startswith(f"{model.layout.blocks}.")}
        assert inside == {n for n, layer in linear.items() if layer is QuantisedLinear}
        assert inside or model.span.first == model.span.last
        assert not any(t.is_meta for t in [*model.parameters(), *model.buffers()])
        assert not any(parameter.requires_grad for parameter in model.parameters())


@needs_bitsandbytes
@pytest.mark.parametrize("quantised", ["nf4", "int8"])
def test_a_real_model_stays_close_to_itself(quantised: Any) -> None:
    if not (STORIES / "config.json").is_file():
        pytest.skip(f"{STORIES} is not here")
    folder = open_model(STORIES)
    plan = Plan.split(folder.num_layers, 1, 1, "u_shaped")
    spans = [s for s in (plan.front, plan.middle, plan.tail) if s is not None]
    models = [build(folder, span, "causal_lm", BaseForm(quantised=quantised)) for span in spans]
    plain = [restored(model) for model in models]
    loss, gradients = step(models, plan, folder, "causal_lm")
    wanted_loss, wanted = step(plain, plan, folder, "causal_lm")
    torch.testing.assert_close(loss, wanted_loss, rtol=TOLERANCE, atol=0)
    assert_close(gradients, wanted)
    exact = [build(folder, span, "causal_lm", BaseForm()) for span in spans]
    exact_loss, _ = step(exact, plan, folder, "causal_lm")
    off = float((loss - exact_loss).abs() / exact_loss)
    assert off < (0.05 if quantised == "nf4" else 0.005)


@needs_bitsandbytes
@pytest.mark.parametrize(("quantised", "largest"), [("nf4", 0.16), ("int8", 1 / 254)])
@pytest.mark.parametrize("shape", [(48, 128), (61, 96), (7, 30), (3, 640)])
def test_weights_are_restored_to_what_the_format_can_say(
    shape: tuple[int, int], quantised: Any, largest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Piece by piece as at once; the error is half of the widest gap, of a block's largest."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    whole = QuantisedLinear(shape[1], shape[0], quantised)
    whole.quantise(weight)
    monkeypatch.setattr("sfl.models.quantised.PIECE_VALUES", 256)
    pieces = QuantisedLinear(shape[1], shape[0], quantised)
    pieces.quantise(weight.t().contiguous().t())
    assert torch.equal(pieces.packed, whole.packed)
    assert torch.equal(pieces.scales, whole.scales)
    assert float((whole.restored(torch.float32) - weight).abs().max()) <= largest * float(
        weight.abs().max()
    ) * (1 + 1e-5)


@needs_bitsandbytes
def test_bfloat16_goes_in_and_comes_out() -> None:
    layer = QuantisedLinear(64, 32, "nf4")
    layer.quantise(torch.randn(32, 64, generator=torch.Generator().manual_seed(2)))
    rows = torch.randn(5, 64, dtype=torch.bfloat16, requires_grad=True)
    output = layer(rows)
    output.sum().backward()
    assert rows.grad is not None
    assert (output.dtype, rows.grad.dtype) == (torch.bfloat16, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        wide = rows.detach().float().requires_grad_()
        output = layer(wide)
    output.sum().backward()
    assert wide.grad is not None
    assert (output.dtype, wide.grad.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.process
@needs_bitsandbytes
def test_one_layer_is_held_unquantised_at_a_time(tmp_path: Path) -> None:
    """In a process of its own: 8 blocks of 17 MB in float32, of which the largest layer is 6 MB."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=512,
        intermediate_size=3072,
        num_hidden_layers=8,
        num_attention_heads=8,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    script = f"""
import torch
from sfl.metrics.memory import memory_use
from sfl.models.folder import open_model
from sfl.models.quantised import check_quantised
from sfl.models.span import build_span
from sfl.plan import Span
folder = open_model({str(tmp_path)!r})
def build(first, last, quantised):
    span = Span(first, last, embedding=False, head=False)
    return build_span(
        folder, span, task="causal_lm", num_labels=0, dtype=torch.float32, quantised=quantised
    )
check_quantised("edge.quantised", "nf4", torch.float32)
one = build(0, 1, "nf4")
before = memory_use().peak_resident
rest = build(1, 8, "nf4")
held = sum(t.nbytes for t in [*rest.parameters(), *rest.buffers()])
print(memory_use().peak_resident - before, held)
"""
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    grown, held = (int(word) for word in result.stdout.split())
    block = sum(e.nbytes for n, e in open_model(tmp_path).tensors.items() if ".layers.1." in n)
    assert held < 7 * block * 0.15
    assert grown < held + 8e6


# -- what is refused -----------------------------------------------------------------------------


def test_without_bitsandbytes_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfl.node.extras.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        settle(EdgeConfig(quantised="nf4"), ModelSettings(path="x"), 1)
    assert "edge.quantised" in str(caught.value)
    assert "'nf4'" in str(caught.value)
    assert "pip install 'sfl[quantised]'" in str(caught.value)
    settle(EdgeConfig(), ModelSettings(path="x"), 1)


@needs_bitsandbytes
@pytest.mark.parametrize("quantised", ["nf4", "int8"])
def test_kernels_that_fail_here_are_found_before_the_base_is_loaded(
    quantised: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_quantised("device.quantised", quantised, torch.bfloat16)

    def fails(layer: QuantisedLinear, dtype: torch.dtype) -> torch.Tensor:
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(QuantisedLinear, "restored", fails)
    with pytest.raises(ConfigError, match=r"device\.quantised.*no kernel"):
        check_quantised("device.quantised", quantised, torch.float32)
    monkeypatch.setattr(
        QuantisedLinear, "restored", lambda layer, dtype: torch.zeros(48, 128, dtype=dtype)
    )
    with pytest.raises(ConfigError, match="off by"):
        check_quantised("device.quantised", quantised, torch.float32)


@pytest.mark.parametrize("runs", ["nf4", "int8", "none"])
def test_auto_falls_back_to_what_runs_here_and_says_why(
    runs: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def probe(quantised: str, dtype: torch.dtype, device: str) -> str:
        assert (dtype, device) == (torch.bfloat16, "cpu")
        return "" if quantised == runs else f"no kernel of {quantised}"

    monkeypatch.setattr("sfl.models.quantised.require_bitsandbytes", lambda field, quantised: None)
    monkeypatch.setattr("sfl.models.quantised._probe", probe)
    model = ModelSettings(path="x", dtype="bfloat16")
    assert settle(DeviceConfig(name="pi", quantised="auto"), model, 1).quantised == runs
    warned = [record.getMessage() for record in caplog.records]
    if runs == "nf4":
        assert not warned
    else:
        assert f"device.quantised auto is {runs} here" in warned[0]
        assert "no kernel of nf4" in warned[0]
        assert ("no kernel of int8" in warned[0]) == (runs == "none")


def test_auto_quantises_nothing_that_is_to_be_folded_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfl.stage.base.first_that_runs", lambda *given: pytest.fail("was tried"))
    own = EdgeConfig(quantised="auto")
    assert settle(own, ModelSettings(path="x"), 1, folds=True).quantised == "none"


@pytest.mark.parametrize(
    ("code", "found", "why", "expected"),
    [
        (0, "nf4", "", ("nf4", "")),
        (0, "none", "nf4: not installed", ("none", "nf4: not installed")),
        (-4, "", "", ("none", "ended its process with -4")),
    ],
)
def test_a_run_writes_down_what_auto_came_to(
    code: int,
    found: str,
    why: str,
    expected: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    commands: list[list[str]] = []

    def ask(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command[-3:])
        return subprocess.CompletedProcess(command, code, stdout=f"{found}\n", stderr=why)

    monkeypatch.setattr("sfl.cli.launch.run.subprocess.run", ask)
    _asked.cache_clear()
    content = {
        "model": {"path": "m"},
        "edge": {"quantised": "auto", "dtype": "bfloat16"},
        "devices": [{"name": "a", "quantised": "auto"}, {"name": "b"}],
    }
    config = resolved(RunConfig.model_validate(content))
    _asked.cache_clear()
    assert commands == [["quantised", "bfloat16", "cpu"], ["quantised", "float32", "cpu"]]
    kinds = (config.edge.quantised, *(entry.quantised for entry in config.devices))
    assert kinds == (expected[0], expected[0], "none")
    said = capsys.readouterr().err
    assert expected[1] in said
    assert ("edge.quantised auto is" in said) == (expected[0] != "nf4")


# -- precision -------------------------------------------------------------------------------------


def test_a_nodes_own_dtype_counts_before_the_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelSettings(path="x", dtype="bfloat16")
    assert settle(EdgeConfig(), model, 1).dtype == "bfloat16"
    device = DeviceConfig(name="pi", dtype="autocast")
    form = settle(device, model, 1)
    assert (form.autocast, form.weights) == (True, torch.float32)


@pytest.mark.parametrize("measured", ["float32", "bfloat16"])
def test_auto_is_what_was_measured_once(measured: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Measured:
        dtype = measured

    def measure(threads: int, device: str) -> Measured:
        calls.append(threads)
        return Measured()

    decided.cache_clear()
    monkeypatch.setattr("sfl.stage.base.fastest_dtype", measure)
    model = ModelSettings(path="x", dtype="auto")
    for _ in range(2):
        assert settle(EdgeConfig(), model, 3).dtype == measured
    assert calls == [3]
    decided.cache_clear()


@pytest.mark.parametrize(("kind", "task"), CASES)
def test_autocast_stays_close_and_trains_in_float32(kind: str, task: Task) -> None:
    folder, plan = opened(kind), PLANS[1]
    spans = [s for s in (plan.front, plan.middle, plan.tail) if s is not None]
    form = BaseForm("autocast")
    models = [build(folder, span, task, form) for span in spans]
    loss, gradients = step(models, plan, folder, task)
    exact = [build(folder, span, task, BaseForm()) for span in spans]
    wanted_loss, wanted = step(exact, plan, folder, task)
    assert {p.dtype for model in models for p in model.parameters()} == {torch.float32}
    assert {g.dtype for g in gradients.values()} == {torch.float32}
    assert loss != wanted_loss
    torch.testing.assert_close(loss, wanted_loss, rtol=0.02, atol=0)
    for name, gradient in wanted.items():
        assert float((gradients[name] - gradient).norm()) < 0.1 * float(gradient.norm()), name


def test_nodes_of_unequal_precision_fit_each_other() -> None:
    folder, plan = opened("llama"), PLANS[1]
    spans = [s for s in (plan.front, plan.middle, plan.tail) if s is not None]
    forms = [BaseForm("float32"), BaseForm("bfloat16"), BaseForm("float32")]
    pairs = zip(spans, forms, strict=True)
    models = [build(folder, span, "causal_lm", form) for span, form in pairs]
    loss, gradients = step(models, plan, folder, "causal_lm")
    assert gradients["boundary 0"].dtype == torch.float32
    assert gradients["boundary 1"].dtype == torch.bfloat16
    exact = [build(folder, span, "causal_lm", BaseForm()) for span in spans]
    wanted, _ = step(exact, plan, folder, "causal_lm")
    torch.testing.assert_close(loss, wanted, rtol=0.02, atol=0)


# -- real runs -------------------------------------------------------------------------------------


def texts(path: Path) -> Path:
    lines = ["the cat sat on the mat", "a dog ran to the old house", "one day a girl saw a bird"]
    return write_jsonl(
        path, [{"text": f"{line} {number}"} for number in range(8) for line in lines]
    )


def values(tmp_path: Path, **sections: Any) -> dict[str, Any]:
    return {
        "run": {"rounds": 2},
        "model": {"path": str(ROOT / "examples/quickstart/model"), "max_length": 32},
        "training": {"batch_size": 4, "local_steps": 6, "learning_rate": 0.01},
        "data": {"eval_fraction": 0.2, "train": str(texts(tmp_path / "texts.jsonl"))},
        "edge": {"threads": 1},
        "devices": [{"name": "pi", "cut_layer": 1, "threads": 1}],
        **sections,
    }


@pytest.mark.process
@needs_bitsandbytes
@pytest.mark.parametrize("topology", ["vanilla", "u_shaped"])
def test_an_nf4_edge_trains_with_an_unquantised_device(topology: str, tmp_path: Path) -> None:
    more = {"run": {"rounds": 2, "topology": topology}, "edge": {"threads": 1, "quantised": "nf4"}}
    outcome = run(tmp_path, values(tmp_path, **more))
    assert outcome.code == 0, outcome.output + outcome.logs()
    summary = outcome.summary
    assert summary["eval_loss_after"] < summary["eval_loss_before"] - 0.3
    assert (summary["edges"][0]["dtype"], summary["edges"][0]["quantised"]) == ("float32", "nf4")
    assert (summary["devices"][0]["dtype"], summary["devices"][0]["quantised"]) == (
        "float32",
        "none",
    )


@pytest.mark.process
def test_auto_is_in_the_effective_config(runs: Runs) -> None:
    outcome = runs("shared_data")
    effective = tomllib.loads((outcome.folder / "config.toml").read_text())
    chosen = effective["edge"]["dtype"]
    assert chosen in ("float32", "bfloat16")
    assert effective["devices"][0]["dtype"] == "autocast"
    assert outcome.summary["edges"][0]["dtype"] == chosen
    assert outcome.summary["devices"][0]["dtype"] == "autocast"


@pytest.mark.process
@needs_bitsandbytes
def test_nodes_started_by_hand_say_what_they_settled_on(tmp_path: Path) -> None:
    """Their own files are unknown to the cloud; its effective config tells all the same."""
    config = values(tmp_path, run={"rounds": 1})
    train = config["data"].pop("train")
    config["model"]["dtype"] = "auto"
    processes: list[subprocess.Popen[bytes]] = []

    def start(kind: str, text: str, wait: bool = True) -> str:
        file, place = tmp_path / f"{kind}.toml", tmp_path / f"{kind}.address"
        file.write_text(text)
        command = [*SFL, kind, str(file), *(["--address-file", str(place)] if wait else [])]
        with (tmp_path / f"{kind}.log").open("wb") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT))
        end = time.monotonic() + 60
        while wait and not place.exists():
            assert time.monotonic() < end and processes[-1].poll() is None
            time.sleep(0.05)
        return place.read_text().strip() if wait else ""

    try:
        cloud = start("cloud", write_config(tmp_path, config).read_text())
        own = 'threads = 1\ndtype = "bfloat16"\nquantised = "nf4"\n'
        edge = start("edge", f'[edge]\ncloud = "{cloud}"\n{own}')
        own = f'threads = 1\ntrain = "{train}"\ncache_dir = "{tmp_path / "cache"}"\n'
        start("device", f'[device]\nname = "pi"\nedge = "{edge}"\n{own}', wait=False)
        assert processes[0].wait(120) == 0, (tmp_path / "cloud.log").read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    effective = tomllib.loads((tmp_path / "runs" / "t" / "config.toml").read_text())
    assert effective["edge"]["dtype"] == "bfloat16"
    assert effective["edge"]["quantised"] == "nf4"
    assert effective["devices"][0]["dtype"] in ("float32", "bfloat16")
