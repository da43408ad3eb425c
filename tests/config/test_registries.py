"""Names in the settings and the tables that they stand for: one list, said in the documentation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from sfl.aggregation.traits import STRATEGIES
from sfl.config.aggregation import AggregationSettings
from sfl.config.base import OneOf
from sfl.config.node import EdgeConfig
from sfl.config.planner import MOVING, POLICIES, STAYING
from sfl.config.training import TrainingSettings
from sfl.planners import PLANNERS
from sfl.stage.computation import COMPUTATIONS
from sfl.stage.orders import ORDERS
from tests.house.paths import ROOT

NAMED: list[tuple[type[BaseModel], str, Any]] = [
    (AggregationSettings, "strategy", STRATEGIES),
    (EdgeConfig, "order", ORDERS),
]


@pytest.mark.parametrize(("kind", "field", "table"), NAMED)
def test_a_name_is_checked_against_its_table(kind: type[BaseModel], field: str, table: Any) -> None:
    (checked,) = (one for one in kind.model_fields[field].metadata if isinstance(one, OneOf))
    assert checked.table is table
    for name in table.built_in:
        assert getattr(kind.model_validate({field: name}), field) == name
    with pytest.raises(ValidationError, match=f"'{next(iter(table))}'"):
        kind.model_validate({field: "no such thing"})


@pytest.mark.parametrize(("kind", "field", "table"), NAMED)
def test_the_documentation_lists_what_is_built_in(
    kind: type[BaseModel], field: str, table: Any
) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{field}` | `"))
    assert row.split(" | ")[1] == ", ".join(f'`"{name}"`' for name in table.built_in)


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (get_args(TrainingSettings.model_fields["computation"].annotation), COMPUTATIONS),
    ],
)
def test_a_literal_and_its_table_have_the_same_names(
    names: Iterable[str], table: dict[str, object]
) -> None:
    assert set(names) - {"auto"} == set(table)


def test_every_planner_may_be_the_policy() -> None:
    names = {*MOVING, *STAYING}
    assert names == set(PLANNERS.built_in)
    assert set(POLICIES.built_in) == names | {"off", "advice"}
    moves = {name for name, own in PLANNERS.built_in.items() if own.alone or own.together}
    assert moves <= set(MOVING) and not moves & set(STAYING)
