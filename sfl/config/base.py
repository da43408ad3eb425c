"""What every settings class shares: frozen, and no unknown key passes."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One table of a config file; unknown keys are errors, values are frozen once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
