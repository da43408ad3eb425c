"""What nodes of a test's run are forked from has imported more than that of a user's, once.

An edge's PEFT, the parts of torch that it and a first backward ask for, and the families of tiny
models.
"""

from __future__ import annotations

import importlib
import os

from sfl.cli.launch.child import NURSERY, PACKAGE
from sfl.models.modeling import import_modeling, leave_out_compiler

if PACKAGE in os.environ:
    leave_out_compiler()
    for _package in ("bert", "gpt2", "llama"):
        import_modeling(_package)
    for _name in (
        "peft",
        "torch.distributed.tensor",
        "torch.fx.experimental.symbolic_shapes",
        "tests.house.forking",
        NURSERY,
    ):
        importlib.import_module(_name)  # the last one has all of it left out of garbage collection
