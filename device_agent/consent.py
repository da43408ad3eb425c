"""What this device agrees to, from its own file: held against every run it is asked to take part
in, before it has read or sent anything. No path of another machine is ever opened here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from sfl.codec.pipeline import parse
from sfl.config import DeviceConfig, RunSettings
from sfl.config.codec import AUTO_CODECS, RoleCodecs
from sfl.errors import ConfigError
from sfl.node.paths import expanded
from sfl.planners.told import Cut
from sfl.rounds.values import Assignment

SOURCES = ("train", "eval", "shared_train", "shared_eval")
"""Settings that name a device's data."""


class Consent:
    """A device's consent, and what it makes of a run's settings."""

    def __init__(self, config: DeviceConfig) -> None:
        self._config = config
        self._rules = config.consent
        for codec in self._rules.codecs:
            parse(codec, "device.consent.codecs")

    def check_sources(self) -> None:
        """Raise ConfigError where a data file is outside `consent.data_dirs`."""
        rule = "device.consent.data_dirs"
        folders = [expanded(folder, rule).resolve() for folder in self._rules.data_dirs]
        for field in SOURCES:
            source = getattr(self._config, field)
            if source is None or not folders:
                continue
            path = expanded(source, f"device.{field}").resolve()  # where a link really leads
            if not any(path.is_relative_to(folder) for folder in folders):
                listed = ", ".join(map(str, self._rules.data_dirs))
                raise ConfigError(
                    f"device.{field}",
                    str(source),
                    f"is in none of the folders of device.consent.data_dirs ({listed})",
                    "Move it there, or add its folder.",
                )

    def agreed(self, settings: RunSettings, assignment: Assignment) -> RunSettings:
        """The run's settings, with this device's own paths in them and no others.

        Raises ConfigError where the run asks for what the device does not agree to, now or in a
        round to come.
        """
        self._check_topology(settings)
        self._check_teacher(settings)
        self.check(assignment)
        for codecs in self._codecs(settings):
            self._check_codecs(codecs)
        own = self._config
        if own.train is None and own.shared_train is None:
            raise ConfigError(
                "device.train",
                None,
                "this device has no training data of its own file, and a path that a run names "
                "(data.train) is not opened here",
                "Set it, or device.shared_train where one file holds the rows of all devices.",
            )
        paths = {"train": own.shared_train, "eval": own.shared_eval}
        return settings.model_copy(update={"data": settings.data.model_copy(update=paths)})

    def check(self, assignment: Assignment) -> None:
        """Raise ConfigError where a round asks for what the device does not agree to."""
        self._check_cut(assignment.plan.cut_layer)
        self._check_codecs(assignment.codecs)

    def allowed(self, cuts: Iterable[Cut]) -> tuple[Cut, ...]:
        """Those that the device agrees to; a planner is told of no others."""
        return tuple(cut for cut in cuts if cut.cut_layer >= self._rules.min_cut_layer)

    def _check_codecs(self, codecs: RoleCodecs) -> None:
        """Raise ConfigError where one of a round's codecs is none that this device uses."""
        if not self._rules.codecs:
            return
        for role, codec in codecs.model_dump().items():
            allowed = set(self._specs(role, self._rules.codecs))
            if role == "adapter":
                allowed.add("none")  # a stream's first travels whole in any case
            if not allowed.issuperset(self._specs(role, [codec])):
                raise _declined(
                    "codecs",
                    list(self._rules.codecs),
                    f"the run codes {role} as {codec!r}",
                    f"Add it, or change codec.{role} of the run.",
                )

    def _check_cut(self, cut_layer: int) -> None:
        rules, name = self._rules, self._config.name
        if cut_layer < rules.min_cut_layer:
            raise _declined(
                "min_cut_layer",
                rules.min_cut_layer,
                f"the run gives this device cut_layer {cut_layer}",
                f"Lower it, or raise devices.{name}.cut_layer of the run.",
            )

    def _check_topology(self, settings: RunSettings) -> None:
        rules = self._rules
        if settings.run.topology not in rules.topologies:
            raise _declined(
                "topologies",
                list(rules.topologies),
                f"the run's topology is {settings.run.topology}",
                "Add it, or change run.topology of the run.",
            )

    def _check_teacher(self, settings: RunSettings) -> None:
        if settings.distil.is_on and not self._rules.teacher:
            raise _declined(
                "teacher",
                self._rules.teacher,
                "the run has a teacher, and what a device sends for it reveals its texts",
                "Set it to true, or leave distil.teacher out of the run.",
            )

    def _codecs(self, settings: RunSettings) -> Iterator[RoleCodecs]:
        """What this device's tensors may be coded with, in any round or rehearsal."""
        tried = AUTO_CODECS if settings.codec.is_auto else ("",)
        for round_ in sorted({1, *(change.from_round for change in settings.codec.schedule)}):
            for auto in tried:
                yield settings.codecs(self._config.name, round_, auto)

    @staticmethod
    def _specs(role: str, codecs: Iterable[str]) -> list[str]:
        """Codecs written out: a preset and its stages are one and the same."""
        gradient = "gradient" in role
        return [parse(text, f"codec.{role}", gradient).spec for text in codecs]


def _declined(rule: str, value: object, problem: str, fix: str) -> ConfigError:
    return ConfigError(f"device.consent.{rule}", value, f"{problem}; this device declines", fix)
