"""Settings with every default that follows from others filled in, so that a reader sees them."""

from __future__ import annotations

from collections.abc import Sequence

from sfl.config.codec import CodecSettings, unread_roles
from sfl.config.run import RunConfig


def in_full(config: RunConfig, target_modules: Sequence[str] = ()) -> RunConfig:
    """The same run, said in full; `target_modules` are the model family's own.

    What a rehearsal or a file decides later stays `auto`.
    """
    training = config.training.model_copy(update={"computation": config.computation})
    if training.local_steps is None and training.local_epochs is None:
        training = training.model_copy(update={"local_epochs": 1})
    modules = config.lora.target_modules or tuple(target_modules)
    grace = config.network.join_grace or config.network.join_timeout
    return config.model_copy(
        update={
            "run": config.run.model_copy(
                update={"min_devices": config.min_devices, "edges": config.edges}
            ),
            "training": training,
            "lora": config.lora.model_copy(update={"target_modules": modules}),
            "aggregation": config.aggregation.model_copy(
                update={"server_learning_rate": config.aggregation.server_step}
            ),
            "codec": _codecs(config),
            "network": config.network.model_copy(update={"join_grace": grace}),
            "devices": tuple(
                entry.model_copy(update={"rank": config.rank(entry.name)})
                for entry in config.devices
            ),
        }
    )


def _codecs(config: RunConfig) -> CodecSettings:
    """Every role's codec, where one is everybody's in all rounds."""
    own = any(entry.codec.model_dump(exclude_none=True) for entry in config.devices)
    if own or config.codec.schedule or config.codec.is_auto:
        return config.codec
    roles = config.codecs(config.devices[0].name, 1)
    unread = set(unread_roles(config.run.topology))  # which a file that names them is refused for
    return config.codec.model_copy(update=roles.model_dump(exclude=unread))
