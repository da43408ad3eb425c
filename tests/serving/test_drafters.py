"""Who guesses: a small model, and an exit over the device's own blocks; what does not fit."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from device_agent.serving.drafts import open_drafter
from device_agent.serving.talk import Wish
from sfl.adapters.artifact import save_adapter
from sfl.adapters.lora import build_manifest
from sfl.cli.draft import Wanted, draft_for_model, draft_for_run
from sfl.config import load_run
from sfl.config.load import dump_toml
from sfl.config.serve import AnswerSettings
from sfl.errors import ConfigError, ModelError
from sfl.models.folder import open_model
from sfl.models.kv.cache import KvCache, KvPool
from sfl.models.span import SpanModel
from sfl.plan import Plan
from sfl.serving.sampling import GREEDY, Sampling
from sfl.stage.base import BaseForm
from sfl.stage.serving.drafting import DraftCache, ModelDrafter
from sfl.stage.serving.exits import (
    ExitDrafter,
    ExitHeader,
    exit_span,
    own_parameters,
    write_exit,
)
from sfl.stage.serving.lessons import Teacher
from sfl.stage.serving.schooling import Schooling, school
from sfl.transport.serve.digest import model_digest
from tests.house.conversations import DECODERS, LONGEST, NEW_TOKENS, PROMPT, folder_of
from tests.house.paths import MODEL, QUICKSTART
from tests.house.serving import answered, device, edge_config, serving
from tests.house.tiny_models import LAYERS, VOCAB, busy_values

WISH = Wish("c", PROMPT, NEW_TOKENS)
WARM = Sampling(0.8, 0.9, seed=5)
VANILLA = Plan.split(LAYERS, 1, 0, "vanilla")
U_SHAPED = Plan.split(LAYERS, 1, 1, "u_shaped")
DEEP = Plan.split(LAYERS, LAYERS - 1, 0, "vanilla")
PLANS = pytest.mark.parametrize("plan", [VANILLA, U_SHAPED], ids=["vanilla", "u_shaped"])

# -- a small model --------------------------------------------------------------------------------


def small_model(kind: str, seed: int) -> ModelDrafter:
    """Another model of the same tokens, or the same one where the seed is 0."""
    folder = open_model(folder_of(kind))
    drafter = ModelDrafter(folder, folder.vocab_size, 4 * LONGEST)
    if seed:
        generator = torch.Generator().manual_seed(seed)
        for parameter in drafter._model.parameters():
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return drafter


@PLANS
@pytest.mark.parametrize("kind", ["gemma3_text", "gpt2"])
def test_a_small_model_guesses_and_changes_nothing(kind: str, plan: Plan) -> None:
    async def run() -> None:
        async with serving(edge_config(kind)) as (_, address):
            for sampling in (GREEDY, WARM):
                wish = replace(WISH, sampling=sampling)
                plain = await answered(address, wish, kind, plan=plan)
                for seed in (0, 1):
                    drafter = small_model(kind, seed)
                    async with device(address, f"e{seed}", kind, plan, drafter) as own:
                        assert await own.say(wish) == plain
                        spoken = own.talker.spoken
                        if seed == 0:  # it knows all, sampled ones too
                            assert spoken.accepted == spoken.drafted > 40
                        else:
                            assert 0 < spoken.accepted < spoken.drafted
                        longer = (*PROMPT, *plain[:9], 7, 8)
                        turned = replace(wish, ids=longer, max_tokens=20)
                        again = await own.say(turned)
                    assert again == await answered(address, replace(turned, name="f"), kind)

    asyncio.run(run())


def test_a_small_model_guesses_no_further_than_its_context() -> None:
    drafter = small_model("gpt2", 0)
    own = DraftCache(KvCache(drafter.pool or KvPool(0)))
    ids = [5] * (LONGEST - 4)
    assert len(drafter.guess(own, ids, 4, GREEDY)) == 4
    assert drafter.guess(own, [*ids, 5], 4, GREEDY) == ()
    assert drafter.guess(own, [VOCAB], 4, GREEDY) == ()


def test_a_model_with_other_tokens_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(MODEL, other)
    file = other / "tokenizer.json"
    tokens = json.loads(file.read_text())
    first, second = sorted(tokens["model"]["vocab"], key=tokens["model"]["vocab"].get)[-2:]
    vocabulary = tokens["model"]["vocab"]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(tokens))
    folder = open_model(MODEL)
    same = AnswerSettings(draft=f"model:{MODEL}")
    assert isinstance(open_drafter(same, folder, 100, BaseForm()), ModelDrafter)
    turned = AnswerSettings(draft=f"model:{other}")
    with pytest.raises(ConfigError, match=r"serve.draft = .*it has other tokens: .* and \d+ there"):
        open_drafter(turned, folder, 100, BaseForm())
    missing = AnswerSettings(draft=f"model:{tmp_path / 'none'}")
    with pytest.raises(ModelError, match=r"serve\.draft"):
        open_drafter(missing, folder, 100, BaseForm())


# -- an exit --------------------------------------------------------------------------------------


def exit_of(kind: str) -> ExitDrafter:
    return ExitDrafter(exit_span(open_model(folder_of(kind)), BaseForm()), 4 * LONGEST)


@PLANS
@pytest.mark.parametrize("kind", DECODERS)
def test_an_exit_guesses_and_changes_nothing(kind: str, plan: Plan) -> None:
    """Where all blocks but the last are the device's, the exit is the model, and knows all."""

    async def run() -> None:
        async with serving(edge_config(kind)) as (_, address):
            for cut, sampling in ((plan, GREEDY), (DEEP, WARM)):
                wish = replace(WISH, sampling=sampling)
                plain = await answered(address, wish, kind, plan=cut)
                async with device(address, "e", kind, cut, exit_of(kind)) as own:
                    assert await own.say(wish) == plain
                    spoken = own.talker.spoken
                    assert spoken.drafted > 40
                    assert cut is not DEEP or spoken.accepted == spoken.drafted

    asyncio.run(run())


@pytest.fixture(scope="module")
def school_case() -> tuple[SpanModel, float, float]:
    folder = open_model(MODEL)
    teacher = Teacher(folder, 1)
    return school(folder, teacher, [(1,), (2, 3)], Schooling(24, 32, 40), lambda *_: None)


def written(folder: Path, trained: SpanModel, **changes: Any) -> Path:
    header = ExitHeader(model_digest(open_model(MODEL)), 1, 0.5, 0.2)
    write_exit(folder, trained, replace(header, **changes))
    return folder


def test_training_makes_guesses_that_stay(school_case: tuple[SpanModel, float, float]) -> None:
    _, before, after = school_case
    assert after > before + 0.1


def test_an_exit_is_read_back_to_the_bit(
    tmp_path: Path, school_case: tuple[SpanModel, float, float]
) -> None:
    path = written(tmp_path / "exit", school_case[0])
    folder = open_model(MODEL)
    drafter = open_drafter(AnswerSettings(draft=f"exit:{path}"), folder, 100, BaseForm())
    assert isinstance(drafter, ExitDrafter)
    trained = own_parameters(school_case[0])
    read = own_parameters(drafter.model)
    assert trained.keys() == read.keys() and len(trained) > 5
    assert all(torch.equal(trained[name], read[name]) for name in trained)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"acceptance": 0.0, "untrained": 0.0}, r"it is not trained: 0\.0% of its guesses were"),
        ({"acceptance": 0.2}, "it is not trained"),
        ({"acceptance": float("nan")}, "it is not trained"),
        ({"acceptance": 0.09, "untrained": 0.0}, r"it has learnt too little: 9\.0%"),
        ({"model": "x"}, r"for another model: config\.json differs"),
        ({"cut_layer": 2}, "for cut_layer 2, and this device's is 1"),
    ],
)
def test_an_exit_that_is_of_no_use_is_refused(
    tmp_path: Path,
    school_case: tuple[SpanModel, float, float],
    changes: dict[str, Any],
    reason: str,
) -> None:
    path = written(tmp_path / "exit", school_case[0], **changes)
    with pytest.raises(ConfigError, match=rf"serve\.draft = .*{reason}.*sfl draft"):
        open_drafter(AnswerSettings(draft=f"exit:{path}"), open_model(MODEL), 100, BaseForm())


def test_a_folder_that_is_no_exit_is_refused(
    tmp_path: Path, school_case: tuple[SpanModel, float, float]
) -> None:
    folder, settings = open_model(MODEL), AnswerSettings(draft=f"exit:{tmp_path / 'exit'}")

    def refused(reason: str) -> None:
        with pytest.raises(ConfigError, match=reason):
            open_drafter(settings, folder, 100, BaseForm())

    refused("cannot be read")
    path = written(tmp_path / "exit", school_case[0])
    weights = path / "exit.safetensors"
    payload = weights.read_bytes()
    weights.write_bytes(payload[:-4] + b"\0\0\0\1")
    refused(r"exit\.safetensors is not the one that exit\.json tells of")
    (path / "exit.json").write_text("{}")
    refused("lacks a sound 'model'")
    (path / "exit.json").write_text("[]")
    refused("not an object")
    weights.unlink()
    written(path, school_case[0])
    weights.unlink()
    refused("cannot be read")


@pytest.mark.parametrize("draft", ["look", "lookup:x", "exit", "model:", "exits:x"])
def test_a_draft_of_no_kind_is_refused(draft: str) -> None:
    with pytest.raises(ValueError, match="is none of none, lookup, exit:FOLDER and model:FOLDER"):
        AnswerSettings(draft=draft)


# -- sfl draft ------------------------------------------------------------------------------------


def a_run(folder: Path) -> Path:
    """What a run leaves: its settings, and an adapter."""
    config = load_run(QUICKSTART / "homes.toml")
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(dump_toml(config))
    manifest = build_manifest(open_model(MODEL), "causal_lm", 0, config.lora)
    save_adapter(folder / "adapter", busy_values(manifest), manifest.peft_config)
    return folder


@pytest.mark.process
def test_a_runs_exit_is_made_by_one_command_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = a_run(tmp_path / "runs" / "20261128-homes")
    wanted = Wanted(texts=16, length=32, steps=60)
    draft_for_run("20261128", tmp_path / "runs", None, wanted)
    assert "of its guesses are what the model says" in capsys.readouterr().out
    said = json.loads((folder / "draft" / "exit.json").read_text())
    assert said["cut_layer"] == 1 and said["adapter"] and said["acceptance"] > said["untrained"]
    settings = AnswerSettings(draft=f"exit:{folder / 'draft'}")
    assert isinstance(open_drafter(settings, open_model(MODEL), 100, BaseForm()), ExitDrafter)


def test_what_cannot_be_drafted_for_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--cut-layer = 9: the model has \d+ blocks"):
        draft_for_model(str(MODEL), None, 9, tmp_path, Wanted())
    with pytest.raises(ConfigError, match=r"--steps = 0: it is not trained"):
        draft_for_model(str(MODEL), None, 1, tmp_path / "exit", Wanted(8, 16, 0))
    assert not (tmp_path / "exit" / "exit.json").exists()
