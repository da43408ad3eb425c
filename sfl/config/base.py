"""What every settings class shares: frozen, and no unknown key passes."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, PositiveFloat
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from sfl.node.plugins import Registry

MOST_CHARACTERS = 100
NODE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
NodeName = Annotated[str, Field(pattern=NODE_NAME, max_length=MOST_CHARACTERS)]
"""A node's name. It becomes part of a path, so it is neither `..` nor longer than a file's name."""
RUN_ID = r"^([A-Za-z0-9_][A-Za-z0-9_.-]*)?$"
RunId = Annotated[str, Field(pattern=RUN_ID, max_length=MOST_CHARACTERS)]
"""A run's id, or nothing; it becomes a folder of its own."""

PACKAGE = r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*$"
PackageVersion = Annotated[str, Field(pattern=PACKAGE, max_length=MOST_CHARACTERS)]
"""An installed package with its version, as `name==version`."""

Seconds = Annotated[PositiveFloat, Field(le=1e9)]
"""A wait: at most thirty years, beyond which systems cannot count one."""

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
"""From 0 to below 1."""


@dataclass(frozen=True)
class OneOf:
    """A name that a table has; any other is refused as a Literal's would be, with all of them."""

    table: Registry[Any]

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """After the value is known to be text."""
        return core_schema.no_info_after_validator_function(self._known, handler(source))

    def _known(self, name: str) -> str:
        if name not in self.table:
            expected = ", ".join(map(repr, self.table))
            raise PydanticCustomError(
                "literal_error", "Input should be one of {expected}", {"expected": expected}
            )
        return name


def given_twice(names: Iterable[str]) -> str | None:
    """The first name that was there before, if there is one."""
    known: set[str] = set()
    for name in names:
        if name in known:
            return name
        known.add(name)
    return None


class Section(BaseModel):
    """One table of a config file; unknown keys are errors, values are frozen once read."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        # Settings travel as JSON, which has neither; and no setting means anything with one.
        allow_inf_nan=False,
    )
