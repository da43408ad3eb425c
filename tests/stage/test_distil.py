"""A larger model on the edge teaches: the loss is that of an unsplit loop with the same formula."""

from __future__ import annotations

import json
import sqlite3
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax

from sfl.config.distil import DistilSettings, Divergence
from sfl.data.batches import Batch
from sfl.errors import ProtocolError
from sfl.stage.distil.cache import RowCache, key_of
from sfl.stage.distil.divergence import measure_of
from sfl.stage.distil.kept_rows import Keeping, packed, row_bytes, unpacked
from sfl.stage.distil.lesson import TopLesson, Weights
from sfl.stage.messages import Key, Kind, Purpose, TensorMessage
from tests.house.alone import TEACHER, Alone
from tests.house.reference import assert_same_bits
from tests.house.tiny_models import base_model, model_folder

EXACT = {"activation": "none", "gradient": "none"}
LOSSY = {"activation": "int8", "gradient": "int8"}


class Taught(Alone):
    """A run with a teacher, beside PEFT with the loss written out as anybody would."""

    def __init__(self, topology: str = "vanilla", codec: Any = EXACT, **distil: Any) -> None:
        super().__init__(topology, codec, distil={"alpha": 0.3, **distil})

    @cached_property
    def teacher(self) -> Any:
        return base_model(model_folder("llama", TEACHER), "causal_lm").eval()

    def unsplit_loss(self, model: Any, batch: Batch, mask: torch.Tensor) -> torch.Tensor:
        own = self.settings.distil
        output = model(input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels)
        with torch.no_grad():
            said = self.teacher(input_ids=batch.input_ids, attention_mask=mask).logits
        scored = batch.labels[:, 1:] != -100
        student, teacher = (
            log_softmax(logits[:, :-1][scored].float() / own.temperature, -1)
            for logits in (output.logits, said)
        )
        apart = self.apart(student, teacher) / int(scored.sum())
        loss: torch.Tensor = own.alpha * own.temperature**2 * apart + (1 - own.alpha) * output.loss
        return loss

    def apart(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        match self.settings.distil.divergence:
            case "forward":
                return kl_div(student, teacher, reduction="sum", log_target=True)
            case "reverse":
                return kl_div(teacher, student, reduction="sum", log_target=True)
        raise AssertionError


class TopTaught(Taught):
    """Told k tokens only: all others are one outcome."""

    def apart(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        values, indices = teacher.topk(self.settings.distil.topk, -1)
        own = student.gather(-1, indices)

        def whole(chosen: torch.Tensor) -> torch.Tensor:
            rest = (1.0 - chosen.exp().sum(-1, keepdim=True)).clamp_min(1e-7)
            return torch.cat([chosen, rest.log()], -1)

        return kl_div(whole(own), whole(values), reduction="sum", log_target=True)


@pytest.mark.parametrize("divergence", ["forward", "reverse"])
@pytest.mark.parametrize("sent", ["ids", "blocks:0", "blocks:2"])
def test_training_equals_the_unsplit_loop_bit_for_bit(divergence: str, sent: str) -> None:
    run = Taught(divergence=divergence, input=sent)
    found = run.over_ends()
    assert_same_bits(found, run.unsplit())
    plain = Alone("vanilla", EXACT).over_ends()
    assert any(not np.array_equal(found[name], plain[name]) for name in found)


@pytest.mark.parametrize("sent", ["ids", "blocks:1"])
def test_over_grpc_it_is_the_same(sent: str) -> None:
    run = Taught(input=sent)
    assert_same_bits(run.over_grpc(), run.over_ends())


@pytest.mark.parametrize("sent", ["ids", "blocks:1"])
def test_a_device_with_the_loss_hears_the_likeliest_tokens(sent: str) -> None:
    run = TopTaught("u_shaped", topk=8, input=sent)
    found = run.over_ends()
    assert_same_bits(found, run.unsplit())
    assert_same_bits(found, run.over_grpc())


def test_lean_computing_gives_the_same_to_rounding() -> None:
    padded = Taught().over_ends()
    run = Taught()
    training = run.settings.training.model_copy(update={"computation": "lean"})
    run.settings = run.settings.model_copy(update={"training": training})
    assert run.settings.computation == "lean"
    for name, value in run.over_ends().items():
        np.testing.assert_allclose(value, padded[name], atol=2e-5)


def test_alpha_one_asks_no_label() -> None:
    """Only the teacher counts, and the cross-entropy has no part in any gradient."""
    assert_same_bits(Taught(alpha=1.0).over_ends(), Taught(alpha=1.0).unsplit())


# -- what is kept ----------------------------------------------------------------------------------


def test_what_is_kept_changes_no_bit_whether_it_was_there_or_not(tmp_path: Path) -> None:
    def with_cache(path: Path) -> tuple[Any, RowCache]:
        run = Taught(cache="1GB")
        run.cache = path
        found = run.over_ends()
        assert run.school is not None and run.school.cache is not None
        return found, run.school.cache

    fresh, first = with_cache(tmp_path / "a.sqlite")
    assert first.misses == 13 and first.hits == 17  # batches of 4, 4, 4, 1
    first.close()
    again, second = with_cache(tmp_path / "a.sqlite")
    assert second.misses == 0
    assert_same_bits(again, fresh)


def test_eight_bits_stay_close_and_cost_what_is_said() -> None:
    rows = torch.randn(20, 576)
    data = packed(rows)
    assert len(data) == 20 * 594 == 20 * row_bytes(576)
    found = unpacked(data, 576)
    worst = rows.view(20, 9, 64).abs().amax(-1, keepdim=True) / 127 * 0.52
    assert ((found - rows).view(20, 9, 64).abs() <= worst).all()
    assert torch.equal(unpacked(packed(found), 576), found)


@pytest.mark.parametrize("width", [1, 48, 64, 65, 130])
def test_any_width_is_kept(width: int) -> None:
    rows = torch.randn(3, width)
    found = Keeping(width, exact=False)
    assert found.as_rows(found.as_bytes(rows)).shape == rows.shape
    whole = Keeping(width, exact=True)
    assert torch.equal(whole.as_rows(whole.as_bytes(rows)), rows)


def test_what_is_full_keeps_what_it_has_and_gives_up_what_no_run_asks_for(tmp_path: Path) -> None:
    keys = [key_of(bytes([n]), None) for n in range(6)]
    cache = RowCache(tmp_path / "c.sqlite", 30)
    for key in keys:
        cache.put({key: b"0123456789"})
    assert cache.get(keys).keys() == set(keys[:3])
    cache.close()
    later = RowCache(tmp_path / "c.sqlite", 30)
    assert later.get([keys[1]])
    later.put({keys[4]: b"9876543210"})
    kept = later.get(keys).keys()
    assert {keys[1], keys[4]} <= kept and len(kept) == 3


def test_a_file_that_another_process_holds_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.sqlite"
    RowCache(path, 1000).close()
    monkeypatch.setattr("sfl.stage.distil.cache._WAIT", 0.01)
    other = sqlite3.connect(path)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    assert RowCache(path, 1000).get([b"k"]) == {}
    assert path.exists()
    other.close()


def test_rows_of_another_length_are_asked_anew(tmp_path: Path) -> None:
    run = Taught(cache="1GB")
    run.cache = tmp_path / "a.sqlite"
    whole = run.over_ends()
    assert run.school is not None and run.school.cache is not None
    run.school.cache.close()
    with sqlite3.connect(run.cache) as file:
        file.execute("UPDATE rows SET data = substr(data, 2)")
    again = Taught(cache="1GB")
    again.cache = run.cache
    assert_same_bits(again.over_ends(), whole)


def test_hidden_states_need_keys_which_are_the_devices_own() -> None:
    with pytest.raises(ProtocolError, match="without their sequences' keys"):
        asked(Taught(input="blocks:1"), named={"teacher": torch.zeros(5, 48)})
    session = Taught(input="blocks:1").session()
    assert session.lessons is not None
    session.open(Taught().start(1), 0)
    message = TensorMessage(
        Kind.ACTIVATION,
        Key(Purpose.TRAINING, 1, 0, 0),
        1,
        (2,),
        named={"teacher": torch.zeros(2, 48)},
        sequence_keys=(b"k" * 16,),
    )
    mine = session.lessons.asked(message).keys
    session.lessons.device = "other"
    assert session.lessons.asked(message).keys != mine


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    path.write_bytes(b"no database at all" * 100)
    cache = RowCache(path, 1000)
    cache.put({b"k" * 32: b"rows"})
    assert cache.get([b"k" * 32]) == {b"k" * 32: b"rows"}


def test_a_place_that_cannot_be_written_costs_the_cache_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    cache = RowCache(tmp_path / "file" / "c.sqlite", 1000)
    cache.put({b"k": b"rows"})
    assert cache.get([b"k"]) == {}
    assert "nothing of what the teacher says is kept" in caplog.text


# -- what does not fit -----------------------------------------------------------------------------


def asked(run: Alone, round_: int = 1, **changes: Any) -> Any:
    """By the message of a step ahead: a job order may put a lesson before gradients."""
    session = run.session()
    session.open(run.start(1), 0)
    lessons = session.lessons
    assert lessons is not None
    message = TensorMessage(
        Kind.ACTIVATION,
        Key(Purpose.TRAINING, round_, 1, 0),
        1,
        (3, 2),
        labels=np.array([-100, 4, 5, -100, 7], np.int32),
        **changes,
    )
    return lessons.handle(message)


def test_a_teacher_says_a_row_for_each_scored_position() -> None:
    said = asked(Taught(), ids=np.array([3, 4, 5, 6, 7], np.int32))
    assert said.shape == (3, 48)


def test_no_teacher_is_asked_for_another_round() -> None:
    with pytest.raises(ProtocolError, match="no teacher is asked in round 2"):
        asked(Taught(), 2, ids=np.array([3, 4, 5, 6, 7], np.int32))


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        (None, "without what the teacher reads"),
        ([3, 4, 5, 6], "5 token ids were expected, 4 came"),
        ([3, 4, 5, 6, 61], r"outside of 0\.\.60"),
        ([3, 4, 5, 6, -1], r"outside of 0\.\.60"),
    ],
)
def test_what_a_teacher_cannot_read_is_refused(ids: list[int] | None, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        asked(Taught(), ids=None if ids is None else np.array(ids, np.int32))


# -- measures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["forward", "reverse", "jsd"])
def test_measures_by_their_definition(kind: Any) -> None:
    random = np.random.default_rng(2)
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in random.normal(size=(2, 5, 9)))

    def divergence(a: Any, b: Any) -> float:
        return float((a * np.log(a / b)).sum())

    m = 0.3 * p + 0.7 * q
    wanted = {
        "forward": divergence(p, q),
        "reverse": divergence(q, p),
        "jsd": 0.3 * divergence(p, m) + 0.7 * divergence(q, m),
    }
    student, teacher = (torch.from_numpy(np.log(x)) for x in (q, p))
    found = float(measure_of(Divergence(kind, 0.3))(student, teacher))
    assert found == pytest.approx(wanted[kind], rel=1e-9)
    assert float(measure_of(Divergence(kind, 0.3))(teacher, teacher)) == pytest.approx(0, abs=1e-9)


def test_all_tokens_named_is_the_whole_divergence() -> None:
    weights = Weights.of(DistilSettings(teacher="t"))
    teacher, student = torch.randn(2, 7, 11)
    said = weights.cooled(teacher)
    values, indices = said.topk(11, -1)
    found = TopLesson(weights, 11, values, indices).divergence(student)
    whole = weights.measure(weights.cooled(student), said)
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", ["jsd:0", "jsd:1", "jsd", "kl", "forward:2"])
def test_an_unknown_measure_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="divergence"):
        DistilSettings(teacher="t", divergence=text)


def test_settings_travel(tmp_path: Path) -> None:
    own = DistilSettings(teacher="t", cache="2GB", input="blocks:3", divergence="jsd:.25")
    assert DistilSettings.model_validate(json.loads(own.model_dump_json())) == own
    assert (own.blocks, own.cache, own.measure) == (3, 2_000_000_000, Divergence("jsd", 0.25))
