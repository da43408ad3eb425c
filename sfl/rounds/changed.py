"""A value with some fields changed, made fast: every event changes the state of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import replace as changed
else:

    def changed(value: Any, /, **fields: Any) -> Any:
        """As `dataclasses.replace`, and checked like it, of a dataclass without slots.

        It copies the fields and runs no constructor: for `RunState` a sixth of the time.
        """
        new = object.__new__(type(value))
        state = new.__dict__
        state.update(value.__dict__)
        number = len(state)
        state.update(fields)
        if len(state) != number:
            raise TypeError(f"{type(value).__name__} has no such field: {sorted(fields)}")
        return new


__all__ = ["changed"]
