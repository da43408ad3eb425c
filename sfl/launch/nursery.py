"""What the process that edge and devices are forked from imports: `forkserver` imports this module.

The only one whose import does something, since an import is all that forkserver can be asked for.
"""

from __future__ import annotations

import importlib
import os

from sfl.launch.child import PACKAGE
from sfl.models.modeling import import_modeling, leave_out_compiler

PRELOADED = (
    "device_agent.agent",
    "device_agent.command",
    "edge_server.server",
    "edge_server.command",
)

if PACKAGE in os.environ:
    leave_out_compiler()
    for name in PRELOADED:
        importlib.import_module(name)
    import_modeling(os.environ[PACKAGE])
