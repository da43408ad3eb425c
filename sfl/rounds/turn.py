"""One step of a run in the making, and what every part of it needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sfl.config import RunSettings
from sfl.rounds.changed import changed
from sfl.rounds.messages import Cause, Command, Evict, Fault, FinishRun
from sfl.rounds.state import End, Phase, RunState

NAMED = 10
"""Names that a message lists at most."""


@dataclass(slots=True)
class Turn:
    """The state so far, and what is to be done, in order; gone when the step is."""

    state: RunState
    settings: RunSettings
    commands: list[Command] = field(default_factory=list)

    def do(self, *commands: Command) -> None:
        """Have this done."""
        self.commands += commands

    @property
    def least(self) -> int:
        """Fewest devices that the open round may close with, of those that were chosen for it."""
        chosen, least = self.state.open.chosen, self.settings.min_devices
        return least if chosen is None else min(chosen, least)

    def finish(self, ok: bool, reason: str) -> None:
        """The run is over."""
        self.state = changed(self.state, phase=Phase.OVER, end=End(ok, reason))
        self.do(FinishRun(ok, reason))

    def stop(self, reason: str) -> None:
        """Nobody can go on now; the run stays as it is, and may be gone on with."""
        self.do(FinishRun(False, reason))

    def forget(self, name: str) -> None:
        """A device is not here any more; nothing is said of that."""
        state = self.state
        roster, forms = state.roster.leave(name), state.forms.forget(name)
        self.state = changed(state, roster=roster, forms=forms)

    def lose(self, name: str, reason: str, cause: Cause = "link") -> None:
        """Forget a device and, unless it had delivered everything, its part in the open round."""
        if name not in self.state.roster.devices:
            return
        open_round = self.state.open
        if cause == "adapter":
            cannot = open_round.cannot_compute.put(name, reason)
            open_round = changed(open_round, cannot_compute=cannot)
        if name in open_round.progress and not open_round.progress[name].done:
            open_round = open_round.without(name, self.settings.network)
        buffer = self.state.buffer.without_part(name)
        self.state = changed(self.state, open=open_round, buffer=buffer)
        said = self._gone(name, cause, reason)
        if name in self.state.strikes.out:
            self._evict(name, said)
        self.do(Fault(self.state.round, name, said))

    def send_away(self, name: str, reason: str, cause: Cause) -> None:
        """Leave a device out of the open round, whatever it delivered, and close its stream.

        What it delivered of rounds before counts, unless it has broken the contract.
        """
        left, buffer = self.state.open, self.state.buffer
        buffer = buffer.without(name) if cause == "offence" else buffer.without_part(name)
        left = left.without(name, self.settings.network)
        self.state = changed(self.state, open=left, buffer=buffer)
        said = self._gone(name, cause, reason)
        self._evict(name, said)
        self.do(Fault(self.state.round, name, said))

    def put_out(self, name: str, reason: str) -> None:
        """Send a device away for good, for what is no offence."""
        strikes, said = self.state.strikes.put_out(name, reason)
        self.state = changed(self.state, strikes=strikes)
        self.send_away(name, said, "link")

    def _gone(self, name: str, cause: Cause, reason: str) -> str:
        """A device is not here any more; `reason` with what that means for it.

        A strike settles how often it was lost before: that makes no second one.
        """
        state = self.state
        strikes, said = state.strikes.note(name, cause, reason)
        struck = strikes is not state.strikes
        roster = state.roster.leave(name)
        self.state = changed(
            state,
            strikes=strikes,
            roster=roster.put_out(name) if name in strikes.out else roster,
            away=state.away.without(name),
            vain=state.vain.without(name) if struck else state.vain,
            forms=state.forms.forget(name),
            losses=state.losses.put(name, said),
            rehearsal=None if state.rehearsal is None else state.rehearsal.without(name),
        )
        return said

    def _evict(self, name: str, said: str) -> None:
        """Tell a device why it is left out now: when it comes back the run may be over."""
        self.do(Evict(name, said, final=name in self.state.strikes.out))

    @property
    def because(self) -> str:
        """Who is missing, and why, as the end of a sentence."""
        cannot = self.state.open.cannot_compute
        lost = [f"{who}: {why}" for who, why in self.state.losses.items() if who not in cannot]
        return "".join(f"; {reason}" for reason in shortened(lost))

    @property
    def who_cannot_compute(self) -> str:
        """Who cannot do so with the round's adapter, to be put behind another reason."""
        if not (reasons := sorted(self.state.open.cannot_compute.items())):
            return ""
        sent = max(0, self.state.round - 1)
        whose = f"; no device can compute with the result of round {sent}'s adapter: "
        return whose + "; ".join(shortened([f"{name}: {reason}" for name, reason in reasons]))


def shortened(texts: Sequence[str]) -> list[str]:
    """The first few, and how many more there are."""
    left = len(texts) - NAMED
    return [*texts[:NAMED], f"{left} more"] if left > 0 else list(texts)
