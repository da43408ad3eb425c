"""What a run came to, beside plain PEFT training in this process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils import get_peft_model_state_dict
from safetensors.numpy import load_file
from transformers.optimization import get_scheduler

from sfl.cli.model import load_model
from sfl.config import RunConfig, load_run
from sfl.data import load_tokenizer, prepare
from sfl.data.batches import Batch, Sampler, collate
from sfl.stage.layout import real_tokens
from tests.house.federation import Outcome


@dataclass
class Reference:
    """Plain PEFT training of one device's batches, from a run's own initial adapter."""

    outcome: Outcome
    config: RunConfig

    def train(self, name: str, rounds: int | None = None) -> dict[str, np.ndarray]:
        """The adapter after every step of `rounds` rounds of device `name`."""
        config, options = self.config, self.config.training
        model = self._model()
        entry = config.device(name)
        tokenizer = load_tokenizer(Path(config.model.path))
        examples = prepare(entry, name, config, tokenizer).train
        sampler = Sampler(len(examples), options.batch_size, config.run.seed, name)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            trained, lr=options.learning_rate, weight_decay=options.weight_decay
        )
        local = options.local_steps or sampler.steps_per_epoch
        schedule = get_scheduler(
            options.schedule, optimizer, options.warmup_steps, local * config.run.rounds
        )
        for step in range(local * (rounds or config.run.rounds)):
            batch = collate([examples[i] for i in sampler.indices(step)], tokenizer.pad_id)
            self.loss(model, batch).backward()
            self.change_gradients(trained, step)
            if options.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(trained, options.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        state = get_peft_model_state_dict(model)
        return {key: value.numpy() for key, value in state.items()}

    def loss(self, model: Any, batch: Batch) -> torch.Tensor:
        mask = real_tokens(batch.lengths, batch.input_ids.shape[1]).long()
        loss: torch.Tensor = model(
            input_ids=batch.input_ids, attention_mask=mask, labels=batch.labels
        ).loss
        return loss

    def change_gradients(self, trained: list[torch.nn.Parameter], step: int) -> None:
        """What a strategy adds to the loss; nothing here."""

    def start(self) -> tuple[LoraConfig, dict[str, np.ndarray]]:
        """PEFT's configuration and the values that training begins with."""
        first = self.outcome.folder / "adapters" / "round-0000"
        return LoraConfig.from_pretrained(first), load_file(first / "adapter_model.safetensors")

    def _model(self) -> Any:
        lora, values = self.start()
        lora.inference_mode = False
        model = get_peft_model(load_model(self.config, None), lora)
        result = set_peft_model_state_dict(model, {k: torch.tensor(v) for k, v in values.items()})
        assert not result.unexpected_keys
        return model.train()


def reference(outcome: Outcome) -> Reference:
    return Reference(outcome, load_run(outcome.folder / "config.toml"))


def adapter(outcome: Outcome, name: str = "adapter") -> dict[str, np.ndarray]:
    values: dict[str, np.ndarray] = load_file(outcome.folder / name / "adapter_model.safetensors")
    return values


def assert_same_bits(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    different = [name for name in found if not np.array_equal(found[name], wanted[name])]
    assert not different


def adapter_traffic(outcome: Outcome) -> int:
    roles = ("bytes_up_by_role", "bytes_down_by_role")
    return sum(d[role]["adapter"] for d in outcome.summary["devices"] for role in roles)
