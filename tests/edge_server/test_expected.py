"""What an edge says of the run's adapter, against the model's headers and the settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sfl.adapters.expected import check_manifest
from sfl.adapters.initial import check_given
from sfl.adapters.manifest import AdapterManifest, ParameterSpec
from sfl.config import RunSettings
from sfl.errors import ProtocolError
from sfl.models.families.family import Task
from sfl.models.layers import linear_names
from tests.house.tiny_models import CASES, LABELS, manifest_of, model_folder, opened

Lie = Callable[[AdapterManifest], AdapterManifest]


def settings(kind: str, task: Task = "causal_lm", **lora: object) -> RunSettings:
    labels = [f"c{n}" for n in range(LABELS)] if task == "sequence_classification" else []
    model = {"path": str(model_folder(kind)), "task": task, "labels": labels}
    return RunSettings.model_validate({"model": model, "devices": [{"name": "d"}], "lora": lora})


@pytest.mark.parametrize("every", [False, True], ids=["usual-layers", "every-layer"])
@pytest.mark.parametrize(("kind", "task"), CASES)
def test_what_an_honest_edge_says_is_taken(kind: str, task: Task, every: bool) -> None:
    folder = opened(kind)
    names = {name.rpartition(".")[2] for name in linear_names(folder, task)} if every else set()
    run = settings(kind, task, rank=4, target_modules=sorted(names))
    manifest = manifest_of(folder, task, run.lora)
    assert manifest.parameters
    check_manifest(AdapterManifest.from_json(manifest.to_json()), run, folder)
    check_manifest(manifest, run, replace(folder, tensors={}))
    check_manifest(manifest, run, None)


def first(change: Callable[[ParameterSpec], ParameterSpec]) -> Lie:
    return lambda m: replace(m, parameters=(change(m.parameters[0]), *m.parameters[1:]))


def more(*shape: int, name: str = "base_model.model.x.lora_A.weight") -> Lie:
    spec = ParameterSpec(name, shape, "kaiming", 1)
    return lambda m: replace(m, parameters=(*m.parameters, spec))


LIES: dict[str, tuple[Lie, str, str | None]] = {
    "blocks": (lambda m: replace(m, num_layers=60000), "num_layers = 60000", None),
    "nothing": (lambda m: replace(m, parameters=()), "does not name", None),
    "one-left-out": (lambda m: replace(m, parameters=m.parameters[1:]), "does not name", None),
    "another-name": (more(8, 8), "names base_model.model.x.lora_A", "lora.rank is 4"),
    "rank": (first(lambda p: replace(p, shape=(9, p.shape[1]))), "x .* are", "lora.rank is 4"),
    "width": (first(lambda p: replace(p, shape=(4, 1 << 30))), "are", "max_parameters is 268435"),
    "dimensions": (first(lambda p: replace(p, shape=(4,))), "are", "lora.rank is 4"),
    "scale": (first(lambda p: replace(p, init="ones")), "are", None),
    "fan-in": (first(lambda p: replace(p, fan_in=1)), "are", None),
    "head": (more(32, 32, name="base_model.model.lm_head.weight"), "has no place for", None),
    "4-billion": (more(1 << 16, 1 << 16, name="base_model.model.h"), "no place", "max_parameters"),
}


@pytest.mark.parametrize("which", LIES)
def test_what_a_lying_edge_says_is_refused(which: str) -> None:
    lie, words, without = LIES[which]
    folder, run = opened("llama"), settings("llama", rank=4)
    said = lie(manifest_of(folder, "causal_lm", run.lora))
    with pytest.raises(ProtocolError, match=words):
        check_manifest(said, run, folder)
    if without is not None:
        with pytest.raises(ProtocolError, match=without):
            check_manifest(said, run, None)


def test_a_parameter_is_named_once() -> None:
    spec = ParameterSpec("a", (2,), "zeros", 1)
    with pytest.raises(ProtocolError, match="named twice"):
        AdapterManifest.from_json(AdapterManifest((spec, spec), 3, {}).to_json())


def test_given_values_are_those_that_were_announced_and_finite() -> None:
    import numpy as np

    manifest = AdapterManifest((ParameterSpec("a", (2,), "given", 1),), 3, {})
    check_given(manifest, {"a": np.ones(2, np.float32)})
    for given, words in (
        ({}, "was not sent"),
        ({"a": np.array([1.0, np.nan], np.float32)}, "not finite"),
        ({"a": np.ones(2, np.float32), "b": np.ones(1, np.float32)}, "b was sent"),
    ):
        with pytest.raises(ProtocolError, match=words):
            check_given(manifest, given)
