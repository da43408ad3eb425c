"""What the process that edge and devices are forked from imports: `forkserver` imports this module.

The only one whose import does something, since an import is all that forkserver can be asked for.
"""

from __future__ import annotations

import gc
import importlib
import os

from sfl.cli.launch.child import PACKAGE
from sfl.models.modeling import import_modeling, leave_out_compiler

PRELOADED = (
    "device_agent.agent",
    "device_agent.command",
    "edge_server.server",
    "edge_server.command",
)

if PACKAGE in os.environ:
    # Nothing of what is imported goes away again: looking for garbage among it, now or in each
    # child later, only takes time, and copies the pages that children share.
    gc.disable()
    try:
        leave_out_compiler()
        for name in PRELOADED:
            importlib.import_module(name)
        import_modeling(os.environ[PACKAGE])
    finally:  # forkserver goes on without a module that cannot be imported
        gc.freeze()
        gc.enable()
