"""When a device pauses: heat, battery, hours, a metered link."""

from __future__ import annotations

import re
from datetime import time
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from sfl.config.base import Seconds, Section


def read_hours(text: str) -> tuple[time, time]:
    """`22:00-06:00` as two times of day. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,2}):(\d\d)-(\d{1,2}):(\d\d)", text.replace(" ", ""))
    if match is None:
        raise ValueError("not a span of hours; write e.g. 22:00-06:00")
    numbers = [int(number) for number in match.groups()]
    if max(numbers[0], numbers[2]) > 23 or max(numbers[1], numbers[3]) > 59:
        raise ValueError("hours go from 00:00 to 23:59; a day's end is 00:00")
    begin, end = time(numbers[0], numbers[1]), time(numbers[2], numbers[3])
    if begin == end:
        raise ValueError("begins and ends at the same time; leave hours out to train all day")
    return begin, end


def _hours(text: str) -> str:
    read_hours(text)
    return text


Hours = Annotated[str, AfterValidator(_hours)]
Celsius = Annotated[float, Field(ge=-40.0, le=150.0)]
Percent = Annotated[float, Field(gt=0.0, le=100.0)]


class PauseSettings(Section):
    """When a device pauses, between two steps and before it joins (docs/boards.md). It stays
    connected meanwhile. A round that does not wait that long goes on without it."""

    above_celsius: Celsius | None = None
    """Pause while the hottest sensor reads more than this."""
    cool_celsius: Celsius | None = None
    """Temperature at which a hot device continues. Default: 5 below `above_celsius`."""
    below_percent: Percent | None = None
    """Pause while the battery has less than this, on a charger or not."""
    charged_percent: Percent | None = None
    """Charge at which a device with a low battery continues. Default: 5 above `below_percent`, at
    most 100."""
    hours: tuple[Hours, ...] = ()
    """Train only in these hours of local time, e.g. `["22:00-06:00"]`. Empty: always."""
    metered: bool = False
    """Pause while NetworkManager calls the link of the default route metered."""
    metered_interfaces: tuple[str, ...] = ()
    """Pause while the default route goes through one of these, e.g. `["wwan*", "usb0"]`."""
    check_interval: Seconds = 5.0
    """Seconds between two checks of sensors and clock."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        hot, cool = self.above_celsius, self.cool_celsius
        if cool is not None and (hot is None or cool >= hot):
            raise ValueError("cool_celsius: needs an above_celsius that is higher")
        low, charged = self.below_percent, self.charged_percent
        if charged is not None and (low is None or charged < low):
            raise ValueError("charged_percent: needs a below_percent that is not higher")
        return self

    @property
    def cools_to(self) -> float:
        """Where a hot device goes on."""
        if self.cool_celsius is not None:
            return self.cool_celsius
        return 0.0 if self.above_celsius is None else self.above_celsius - 5.0

    @property
    def charges_to(self) -> float:
        """Where a device with a low battery goes on."""
        if self.charged_percent is not None:
            return self.charged_percent
        return 100.0 if self.below_percent is None else min(100.0, self.below_percent + 5.0)
