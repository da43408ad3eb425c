"""Work from headers against what torch counts in the model itself."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sfl.config import LoraSettings
from sfl.cost.work import Batch, Flops, ModelShape, work
from sfl.models.families.family import Task
from sfl.models.shape import model_shape
from tests.house.tiny_models import LABELS, busy_values, manifest_of, opened, peft_model

LENGTH, SEQUENCES, RANK = 12, 3, 4
BATCH = Batch(SEQUENCES, LENGTH)


def counted(kind: str, task: Task) -> tuple[dict[str, int], dict[str, int], ModelShape]:
    """FLOPs by module of a forward, and of forward and backward together."""
    folder = opened(kind)
    lora = LoraSettings(rank=RANK, alpha=8.0)
    manifest = manifest_of(folder, task, lora)
    values = busy_values(manifest)
    model = peft_model(folder, task, manifest, values, attn_implementation="eager")
    ids = torch.randint(3, 50, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(1))
    labels = ids if task == "causal_lm" else torch.arange(SEQUENCES) % LABELS
    found = []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            loss = model(input_ids=ids, labels=labels).loss
            if backward:
                loss.backward()
        found.append({n: sum(each.values()) for n, each in counter.get_flop_counts().items()})
    return found[0], found[1], model_shape(folder, task, num_labels=LABELS)


def of(counts: dict[str, int], end: str) -> int:
    """The module whose name ends so."""
    (found,) = {count for name, count in counts.items() if name.endswith(end)}
    return found


@pytest.mark.parametrize(
    ("kind", "task", "blocks", "head"),
    [
        ("llama", "causal_lm", "layers", ("lm_head",)),
        ("llama", "sequence_classification", "layers", ("score",)),
        ("qwen3", "causal_lm", "layers", ("lm_head",)),
        ("gpt2", "causal_lm", "h", ("lm_head",)),
        ("gpt2", "sequence_classification", "h", ("score",)),
        ("bert", "sequence_classification", "layer", ("pooler", "classifier")),
        ("roberta", "sequence_classification", "layer", ("classifier",)),
        ("distilbert", "sequence_classification", "layer", ("pre_classifier", "classifier")),
    ],
)
def test_work_is_what_torch_counts(kind: str, task: Task, blocks: str, head: tuple[str, ...]):
    """To the last operation, of each block and of the head, forward and backward."""
    forward, both, shape = counted(kind, task)
    for number, block in enumerate(shape.blocks):
        expected = work(block, BATCH, RANK, bottom=number == 0)
        assert of(forward, f".{blocks}.{number}") == expected.forward
        assert of(both, f".{blocks}.{number}") == expected.both
    expected = work(shape.head, BATCH, RANK)
    assert sum(of(forward, f".{name}") for name in head) == expected.forward
    assert sum(of(both, f".{name}") for name in head) == expected.both


def test_bytes_are_those_of_the_headers():
    """Each tensor counts once; an adapter's by its ranks."""
    folder = opened("gpt2")
    shape = model_shape(folder, "causal_lm")
    held = sum(block.num_bytes for block in shape.blocks) + shape.embedding_bytes
    norm = sum(e.nbytes for name, e in folder.tensors.items() if ".ln_f." in name)
    tied = shape.head.num_bytes - norm
    assert held + norm == sum(entry.nbytes for entry in folder.tensors.values())
    assert tied == folder.vocab_size * folder.hidden_size * 4
    lora = 4 * RANK * (32 + 96 + 32 + 32 + 32 + 128 + 128 + 32)
    assert shape.lora_bytes(0, RANK) == lora
    assert shape.moment_bytes(0, RANK) == 2 * lora
    assert shape.cut_bytes(BATCH, 32) == SEQUENCES * LENGTH * 32 * 4


def test_targets_and_alike_blocks():
    """Who has no adapter costs less; blocks of one kind weigh the same."""
    folder = opened("llama")
    some = model_shape(folder, "causal_lm", target_modules=("q_proj", "v_proj"))
    every = model_shape(folder, "causal_lm")
    assert some.lora_bytes(0, 4) < every.lora_bytes(0, 4)
    assert every.weights(BATCH, RANK) == ()
    assert every.span(0, 3, BATCH, RANK).both > 2 * every.span(1, 2, BATCH, RANK).both
    assert Flops(2, 3).recomputed == Flops(2, 5)
