"""When the coordinator has to look again, and how far edges may run ahead until then."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from sfl.config import RunSettings
from sfl.rounds import Coordinator, Phase
from sfl.simulate.events import FIRST, Events


class Deadlines:
    """A tick of the clock where a deadline of the run's state is over, and none else.

    A real cloud ticks every half second: what it does then, it does a little later.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        events: Events,
        tick: Callable[[], object],
        *,
        strict: bool = False,
    ) -> None:
        """`strict`: no edge runs ahead of the clock."""
        self._coordinator = coordinator
        self._events = events
        self._act = tick
        self._strict = strict
        self._tick_at = inf
        self._away: object = None
        self._back_by = inf

    @property
    def _settings(self) -> RunSettings:
        return self._coordinator.settings

    @property
    def is_training(self) -> bool:
        """Whether a round is open."""
        return self._coordinator.state.phase in (Phase.ROUND, Phase.FINAL)

    def may_look(self) -> bool:
        """Whether the next event may have the coordinator look for who holds up the round."""
        open_round = self._coordinator.state.open
        if self._events.now < open_round.stragglers.look_at or not self.is_training:
            return False
        return 2 * (open_round.num_done + 1) >= len(open_round.progress)

    def set(self) -> None:
        """After an event: have the coordinator look again when its next deadline is over."""
        due = self._due()
        if self._events.now < due < self._tick_at:
            self._tick_at = due
            self._events.at(due, FIRST, self._tick, due)
        self._look_ahead()

    def _due(self) -> float:
        state, now = self._coordinator.state, self._events.now
        if state.away is not self._away:
            self._away = state.away
            self._back_by = min((own.until for own in state.away.values()), default=inf)
        due = min(state.deadline, self._back_by)
        if state.grace_ends is not None and state.grace_ends < due:
            due = state.grace_ends
        if self.is_training and now < state.open.stragglers.look_at < due:
            due = state.open.stragglers.look_at
        if self._settings.is_asynchronous and now < state.buffer.look_at < due:
            due = state.buffer.look_at
        return due

    def _look_ahead(self) -> None:
        """Until its next deadline the coordinator leaves devices alone that it has told to work.

        But it may leave some out at any moment, once it has begun to look for them.
        """
        state = self._coordinator.state
        looks = self.is_training and self._events.now >= state.open.stragglers.look_at
        self._events.strict = self._strict or looks or self._settings.counts_late_updates
        self._events.horizon = self._tick_at

    def _tick(self, due: float) -> None:
        if due == self._tick_at:
            self._tick_at = inf
            self._act()
