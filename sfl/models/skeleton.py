"""transformers' own model class on the meta device: every name and shape, no memory."""

from __future__ import annotations

import importlib
import threading
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sfl.errors import ModelError
from sfl.models.families.family import Layout, Task
from sfl.models.folder import ModelFolder
from sfl.models.modeling import import_modeling
from sfl.node.causes import foreseen

_ALONE = threading.Lock()
"""transformers has one switch for the whole process, and it must be found as it was left."""


def build_skeleton(
    folder: ModelFolder, layout: Layout, task: Task, num_labels: int, dtype: torch.dtype
) -> nn.Module:
    """The complete model as transformers builds it, all tensors on the meta device.

    Imports only the one modeling module that is needed. Raises ConfigError for a task that the
    family cannot do, ModelError for a config.json that transformers does not accept.
    """
    folder.check_task(task)
    place = f"transformers.models.{layout.package}"
    modeling = import_modeling(layout.package)  # first: it leaves out what others would bring in
    configuration = importlib.import_module(f"{place}.configuration_{layout.package}")
    initialization: Any = importlib.import_module("transformers.initialization")
    try:
        config: Any = getattr(configuration, layout.config_class).from_dict(dict(folder.config))
        if task == "sequence_classification":
            config.num_labels = num_labels
        config.dtype = dtype
        # On the meta device nothing is initialised; to try takes time, and imports sympy.
        with _ALONE, torch.device("meta"), initialization.no_init_weights(), _RealRanges():
            model: nn.Module = getattr(modeling, layout.model_class)(config)
    except Exception as error:
        if foreseen(error) is not None:
            raise
        # transformers and torch raise all sorts over sizes that do not fit each other.
        problem = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(
            "model.path",
            str(folder.path / "config.json"),
            f"transformers does not accept it ({problem})",
            "Fetch the model again, or correct its config.json.",
        ) from error
    return model


class _RealRanges(TorchFunctionMode):
    """`torch.arange` on the CPU, and with it rotary frequencies and positions, which are small.

    On the meta device torch computes with them by way of sympy, 44 MB.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.arange:
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


def fill_buffers(model: Any) -> None:
    """Compute the buffers that checkpoints do not hold, on the CPU, as from_pretrained does."""
    for module in model.modules():
        lacking = [
            name
            for name, buffer in module.named_buffers(recurse=False)
            if buffer.is_meta and name in module._non_persistent_buffers_set
        ]
        for name in lacking:
            module._buffers[name] = torch.empty_like(module._buffers[name], device="cpu")
        if lacking:
            # Weights are still on the meta device here: to initialise them does nothing.
            model._init_weights(module)
