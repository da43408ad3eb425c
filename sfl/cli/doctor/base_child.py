"""`python -m sfl.cli.doctor.base_child PACKAGE`: what a device process takes before its model.

Apart from its parent, since what counts is a process that has imported what a device does, in a
device's order, and nothing else.
"""

from __future__ import annotations

import json
import sys

from sfl.node.process import quiet_environment, return_memory


def main(package: str) -> None:
    """A line of JSON: resident bytes, and whether freed memory goes back to the system."""
    quiet_environment()
    returned = return_memory()
    from sfl.models.modeling import import_modeling, leave_out_compiler

    leave_out_compiler()
    import device_agent.agent  # noqa: F401 - for what it imports
    from sfl.metrics.memory import working_bytes

    import_modeling(package)
    sys.stdout.write(json.dumps({"base_bytes": working_bytes(), "returned": returned}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
