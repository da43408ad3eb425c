"""transformers' classes, built without memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from sfl.models.families import FAMILIES
from sfl.models.skeleton import build_skeleton
from tests.house.paths import MODEL, ROOT
from tests.house.tiny_models import opened


@pytest.fixture
def often() -> Iterator[None]:
    """Threads take turns more often than they would."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("often")
def test_threads_that_build_leave_initialisation_as_they_found_it() -> None:
    folder = opened("llama")
    layout = FAMILIES[folder.model_type].layout(folder.config, "causal_lm")
    found = (nn.init.normal_, nn.init.ones_)

    def build(_: int) -> None:
        build_skeleton(folder, layout, "causal_lm", 2, torch.float32)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(build, range(12)))
    assert (nn.init.normal_, nn.init.ones_) == found


LEAN = """
import sys
from sfl.models.modeling import leave_out_compiler
leave_out_compiler()
from sfl.models.folder import open_model
from sfl.plan import Plan
from sfl.stage.serving.front import FrontStage
folder = open_model(sys.argv[1])
FrontStage(folder, Plan.split(folder.num_layers, 1, 0, "vanilla"), 64)
assert not {"sympy", "torch.distributed.tensor"} & sys.modules.keys()
"""


@pytest.mark.process
def test_a_device_that_answers_imports_no_compiler_and_nothing_distributed() -> None:
    """50 MB of a process."""
    subprocess.run([sys.executable, "-c", LEAN, str(MODEL)], cwd=ROOT, check=True)
