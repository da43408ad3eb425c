"""The reference beside sfl: the same LoRA on the same examples, in one process, with PEFT alone."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

from sfl.cli.model import evaluate_model, load_model
from sfl.config import RunConfig
from sfl.data import Dataset, load_tokenizer, prepare
from sfl.data.batches import collate
from sfl.rounds.values import Score
from sfl.stage.layout import real_tokens


def pooled(config: RunConfig) -> Dataset:
    """The examples of all devices as one data set."""
    tokenizer = load_tokenizer(Path(config.model.path))
    parts = [prepare(entry, entry.name, config, tokenizer) for entry in config.devices]
    train = [example for part in parts for example in part.train]
    evaluation = [example for part in parts for example in part.eval]
    return Dataset(train, evaluation, parts[0].kind, parts[0].notes)


def train_alone(config: RunConfig, adapter: Path, steps: int) -> tuple[Score, Score]:
    """Held-out score before and after `steps` AdamW steps with linear decay.

    The LoRA is configured as in `adapter`, a run's; its values are PEFT's own initial ones.
    """
    torch.manual_seed(config.run.seed)
    data, tokenizer = pooled(config), load_tokenizer(Path(config.model.path))
    lora = LoraConfig.from_pretrained(adapter)
    lora.inference_mode = False
    model: Any = get_peft_model(load_model(config, None), lora)
    before = evaluate_model(model, data, tokenizer, config)
    settings, trainable = config.training, [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
    order: list[int] = []
    rng = random.Random(config.run.seed)
    model.train()
    for _ in range(steps):
        if len(order) < settings.batch_size:
            order = list(range(len(data.train)))
            rng.shuffle(order)
        chosen = [data.train[order.pop()] for _ in range(min(settings.batch_size, len(order)))]
        batch = collate(chosen, tokenizer.pad_id)
        mask = real_tokens(batch.lengths, batch.input_ids.shape[1]).long()
        model(input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    return before, evaluate_model(model, data, tokenizer, config)


def perplexity(loss: float) -> float:
    """exp of a loss in nats."""
    return math.exp(loss)
