"""A run with a teacher, held to an unsplit PEFT loop with the same loss, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import kl_div, log_softmax

from sfl.data.batches import Batch
from sfl.stage.distil.teacher import Teacher
from sfl.stage.layout import real_tokens
from tests.house.federation import Outcome, finished, run, sfl, write_config
from tests.house.fleets import CLASSES, classified, completions, device, settings, tiny
from tests.house.reference import Reference, adapter, assert_same_bits, reference
from tests.house.tiny_models import LABELS
from tests.house.twin import played

pytestmark = [pytest.mark.usefixtures("quiet_peft"), pytest.mark.process]

LARGER = json.dumps({"hidden_size": 48, "num_hidden_layers": 5, "intermediate_size": 80})


class Distilled(Reference):
    """Plain training on what targets and the teacher say."""

    def __init__(self, outcome: Outcome, teacher: Any) -> None:
        plain = reference(outcome)
        super().__init__(plain.outcome, plain.config)
        self.teacher = teacher.eval()

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        own = self.config.distil
        mask = real_tokens(batch.lengths, batch.input_ids.shape[1]).long()
        output = model(input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels)
        with torch.no_grad():
            said = self.teacher(input_ids=batch.input_ids, attention_mask=mask).logits
        student, teacher = output.logits, said
        if batch.labels.dim() == 2:
            scored = batch.labels[:, 1:] != -100
            student, teacher = student[:, :-1][scored], teacher[:, :-1][scored]
        apart = kl_div(
            log_softmax(student.float() / own.temperature, -1),
            log_softmax(teacher.float() / own.temperature, -1),
            reduction="sum",
            log_target=True,
        )
        scale = own.alpha * own.temperature**2
        loss: torch.Tensor = scale * (apart / len(student)) + (1 - own.alpha) * output.loss
        return loss


def test_a_run_with_a_teacher_is_the_unsplit_loop_with_the_same_loss(tmp_path: Path) -> None:
    teacher = tiny("llama", LARGER)
    values = settings(tiny("llama"), distil={"teacher": str(teacher), "alpha": 0.7})
    values["devices"] = [device("a", completions(tmp_path / "train.jsonl", 1), 1)]
    outcome = finished(run(tmp_path, values))
    larger = transformers.AutoModelForCausalLM.from_pretrained(teacher)
    assert_same_bits(adapter(outcome), Distilled(outcome, larger).train("a"))
    assert "devices send their token ids for the teacher" in outcome.logs()


def test_a_classifier_is_taught_its_classes(tmp_path: Path) -> None:
    bare = tiny("bert", json.dumps({"num_hidden_layers": 4}))
    kept = tmp_path / "teacher"
    transformers.AutoTokenizer.from_pretrained(bare).save_pretrained(kept)
    torch.manual_seed(1)
    kind = transformers.AutoModelForSequenceClassification
    kind.from_pretrained(bare, num_labels=LABELS).save_pretrained(kept)
    values = settings(
        tiny("bert"),
        model={"task": "sequence_classification", "labels": CLASSES},
        distil={"teacher": str(kept), "cache": "1MB"},
    )
    values["devices"] = [device("a", classified(tmp_path / "train.jsonl", 1), 1)]
    outcome = finished(played(tmp_path, values))
    larger = kind.from_pretrained(kept)
    assert_same_bits(adapter(outcome), Distilled(outcome, larger).train("a"))


def test_two_devices_at_two_cuts_keep_what_the_teacher_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run finds all of it, and ends in the same bits."""
    values = settings(
        tiny("llama"),
        distil={"teacher": str(tiny("llama", LARGER)), "cache": "1MB", "input": "blocks:1"},
    )
    values["devices"] = [
        device(name, completions(tmp_path / f"{name}.jsonl", seed), cut)
        for seed, (name, cut) in enumerate((("a", 1), ("b", 2)))
    ]
    (tmp_path / "first").mkdir()
    (tmp_path / "again").mkdir()
    first = finished(played(tmp_path / "first", dict(values)))
    (kept,) = (tmp_path / "first").rglob("taught/*.sqlite")
    place = tmp_path / "again" / kept.relative_to(tmp_path / "first")
    place.parent.mkdir(parents=True)
    shutil.copy(kept, place)
    monkeypatch.setattr(Teacher, "hidden", None)  # it is asked for nothing any more
    again = finished(played(tmp_path / "again", dict(values)))
    assert_same_bits(adapter(again), adapter(first))


@pytest.mark.parametrize(
    ("distil", "problem"),
    [
        ({"teacher": "nowhere/at/all"}, "distil.teacher"),
        ({"teacher": "STUDENT", "input": "blocks:3"}, "one at least is the edge's"),
        ({"teacher": "OTHER"}, "has other tokens"),
        ({"alpha": 0.7}, "there is no teacher"),
        ({"teacher": "STUDENT", "topk": 4}, "distil.topk"),
        ({"teacher": "STUDENT", "codec": "int8"}, "token ids are not coded"),
    ],
)
def test_what_cannot_teach_is_refused_before_anything_starts(
    tmp_path: Path, distil: dict[str, Any], problem: str
) -> None:
    student = tiny("llama")
    other = tmp_path / "other"
    if distil.get("teacher") == "OTHER":
        transformers.AutoModelForCausalLM.from_pretrained(student).save_pretrained(other)
        words = json.loads((student / "tokenizer.json").read_text())
        vocabulary = words["model"]["vocab"]
        names = list(vocabulary)
        vocabulary[names[-1]], vocabulary[names[-2]] = vocabulary[names[-2]], vocabulary[names[-1]]
        (other / "tokenizer.json").write_text(json.dumps(words))
        (other / "tokenizer_config.json").write_text(
            (student / "tokenizer_config.json").read_text()
        )
    known = {"STUDENT": str(student), "OTHER": str(other)}
    distil = {**distil, "teacher": known.get(distil.get("teacher", ""), distil.get("teacher", ""))}
    values = settings(student, distil=distil)
    values["devices"] = [device("a", completions(tmp_path / "train.jsonl", 1), 1)]
    done = sfl("run", write_config(tmp_path, values))
    assert done.returncode != 0 and problem in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_device_that_does_not_agree_sends_nothing(tmp_path: Path) -> None:
    from device_agent.consent import Consent
    from sfl.config import DeviceConfig, RunSettings
    from sfl.errors import ConfigError
    from tests.house.alone import Alone

    data = completions(tmp_path / "train.jsonl", 1)
    plain = Alone("vanilla", {"activation": "none", "gradient": "none"}, distil={"alpha": 0.5})
    own = DeviceConfig(name="kitchen", edge="e:1", train=data)
    settings_: RunSettings = plain.settings
    with pytest.raises(ConfigError, match="reveals its texts"):
        Consent(own).agreed(settings_, plain.start(0))
    agrees = own.model_copy(update={"consent": own.consent.model_copy(update={"teacher": True})})
    assert Consent(agrees).agreed(settings_, plain.start(0)).distil.is_on
