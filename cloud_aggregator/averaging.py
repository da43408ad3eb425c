"""The global adapter: what a run begins with, and what its rounds make of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from cloud_aggregator.base_updates import BaseUpdates
from cloud_aggregator.beside import resolvable_base
from cloud_aggregator.edge_sums import EdgeSums
from cloud_aggregator.effective import EffectiveConfig
from cloud_aggregator.memory import StrategyMemory
from cloud_aggregator.mirror import MADE, SETTINGS, Mirror, NoMirror
from cloud_aggregator.sealed import Sealed
from sfl.adapters.artifact import WEIGHTS, load_adapter, save_adapter
from sfl.adapters.manifest import AdapterManifest
from sfl.aggregation.contribution import Array, Contribution, Stale, verify
from sfl.aggregation.examine import Examined, examine, not_finite
from sfl.aggregation.shares import bounded
from sfl.aggregation.strategy import make_strategy
from sfl.aggregation.sums import by_edge
from sfl.aggregation.weighted import mean_strategy
from sfl.errors import DiskError, ProtocolError
from sfl.metrics.stats import NodeStats
from sfl.node.files import on_disk, write_atomic
from sfl.node.numbered import round_name, round_of
from sfl.plan import Holder
from sfl.report.card import Base
from sfl.report.conclusion import MANIFEST
from sfl.rounds import AdapterReady, Aggregate, Progress, Reduce, Update
from sfl.rounds.values import UpdateHeader
from sfl.transport.cloud.spool import Spool
from sfl.transport.frames.chunks import adapter_bytes
from sfl.transport.frames.contract import adapter_limit

log = logging.getLogger("sfl.cloud")

SUMS = "base_updates/"
"""Where the sums are that rounds added to the bases, all of which a run goes on from."""
HEAVY = 0.9  # share of an average that a user is told of


class GlobalAdapter:
    """The adapter's values, and the sums that went into the bases, on disk round by round."""

    def __init__(
        self, config: EffectiveConfig, folder: Path, ref: str = "", sealed: Sealed | None = None
    ) -> None:
        """`ref` names the adapter that a run goes on from. Raises SflError."""
        self._config = config
        self._folder = folder
        self._sealed = Sealed(folder) if sealed is None else sealed
        self._latest: tuple[int, dict[str, Array]] = 0, {}
        self.manifest: AdapterManifest | None = None
        if ref:
            self.manifest = _manifest(folder)
            self._latest = round_of(ref), self._load(ref)
            self._sealed.require_all(SUMS, round_of(ref))
        self.base_updates = BaseUpdates(folder / SUMS, max(0, round_of(ref)))

    def begin(self, manifest: AdapterManifest, values: dict[str, Array]) -> None:
        """The adapter that the run begins with. Raises DiskError."""
        self.manifest, self._latest = manifest, (0, values)
        write_atomic(self._folder / MANIFEST, manifest.to_json())
        self.save(0)

    @property
    def values(self) -> dict[str, Array]:
        """The latest ones."""
        return self._latest[1]

    def at(self, round_: int) -> dict[str, Array]:
        """The adapter of a round, which may be an older one that some device still works from.

        Raises DiskError.
        """
        latest, values = self._latest
        if round_ == latest:
            return values
        with on_disk(self._folder):
            return self._load(adapter_ref(round_))

    def _load(self, ref: str) -> dict[str, Array]:
        self._sealed.require(f"{ref}/{WEIGHTS}")
        return load_adapter(self._folder / ref)[0]

    def hold(self, round_: int, values: dict[str, Array]) -> None:
        """From now on these are the latest."""
        self._latest = round_, values

    @property
    def limit(self) -> int:
        """Most bytes of one part of an update."""
        manifest = self.manifest
        return 0 if manifest is None else adapter_limit(p.shape for p in manifest.parameters)

    def base_model(self) -> Base:
        """The base as others can find it."""
        peft = {} if self.manifest is None else self.manifest.peft_config
        name = str(peft.get("base_model_name_or_path") or "")
        return resolvable_base(self._config.current, name)

    def require(self, name: str) -> None:
        """Raises DiskError where a file that a round left, if it did, is not what it was."""
        if name:
            self._sealed.require(name)

    def seal(self, round_: int, *more: str) -> dict[str, str]:
        """The digests of what a round left, and of `more` files. Raises DiskError."""
        names = [f"{adapter_ref(round_)}/{WEIGHTS}", *self.base_updates.latest, *more]
        return self._sealed.seal(names)

    def forget_before(self, round_: int) -> None:
        """Nobody needs an adapter of an earlier round any more."""
        self._sealed.forget_before(round_, SUMS)

    def save(self, round_: int) -> None:
        """Keep a round's adapter: where rounds were folded into the bases, all of them."""
        assert self.manifest is not None
        with on_disk(self._folder):
            folded, rank = self.base_updates.as_adapter()
        base = {"base_model_name_or_path": self.base_model().name}
        config = {**self.manifest.peft_config, **rank, **base}
        save_adapter(self._folder / adapter_ref(round_), self.values | folded, config)


def _manifest(folder: Path) -> AdapterManifest:
    """What the adapter of a run that goes on consists of. Raises DiskError."""
    with on_disk(folder / MANIFEST):
        text = (folder / MANIFEST).read_bytes().decode("utf-8", "replace")
    try:
        return AdapterManifest.from_json(text)
    except ProtocolError as error:
        fix = "Restore the file, or begin another run."
        raise DiskError(f"{folder / MANIFEST}: it is damaged ({error}). {fix}") from None


def adapter_ref(round_: int) -> str:
    """Where a round's adapter is, in the run's folder."""
    return f"adapters/{round_name(round_)}"


class Averaging:
    """Looks at what came, and merges it; slow, and so for a thread of its own."""

    def __init__(
        self,
        config: EffectiveConfig,
        folder: Path,
        adapter: GlobalAdapter,
        stats: NodeStats,
        remembered: str = "",
        mirror: Mirror | None = None,
    ) -> None:
        """`remembered` names what the strategy has in mind, of a run that goes on. Raises
        DiskError."""
        settings = config.current
        self.spool = Spool(folder / "spool")
        self._strategy = make_strategy(settings.aggregation, settings.lora)
        self.sums = EdgeSums(config, self._strategy, lambda: adapter.values, self.spool)
        self._config = config
        self._folder = folder
        self._adapter = adapter
        self._stats = stats
        self._memory = StrategyMemory(folder)
        self.mirror: Mirror = NoMirror() if mirror is None else mirror
        """Where files are kept a second time, if anywhere."""
        adapter.require(remembered)
        self._strategy.state.update(self._memory.read(remembered))
        self._heavy: set[str] = set()  # devices that were warned of

    def first(self) -> AdapterReady:
        """The adapter that the run begins with is there. Raises DiskError."""
        return AdapterReady(0, adapter_ref(0), digests=self._adapter.seal(0))

    def payload(self, round_: int) -> bytes:
        """What devices get of the adapter of a round, as a safetensors file. Raises DiskError."""
        values = self._adapter.at(round_)
        folded = self._strategy.folded(values)
        return adapter_bytes({name: a for name, a in values.items() if name not in folded})

    def check(self, header: UpdateHeader, progress: Progress) -> None:
        """Hold a part against this run, with all the others once they are here.

        Raises ProtocolError where they are no adapter of it.
        """
        contribution = self._contribution(
            header.round, header.device, progress.num_examples, progress.parts
        )
        if header.scaling != contribution.scaling:
            raise ProtocolError(
                f"adapter of device {header.device}: scaled by {header.scaling:g}; alpha / rank is "
                f"{contribution.scaling:g}"
            )
        if all(file.exists() for file in contribution.files):
            verify(contribution, self._strategy.shapes(contribution, self._adapter.values))

    def examine(self, command: Aggregate | Reduce, updates: Mapping[str, Update]) -> Examined:
        """Look at a round's updates, each with the weight that it has."""
        steps = {device: updates[device].steps for device in command.contributions}
        config = self._config.current
        most = config.aggregation.max_weight_share
        contributions = [
            self._carried(command.round, updates[device], num_examples)
            for device, num_examples in bounded(command.contributions, most).items()
        ]
        self._warn_of_weights(command.contributions, most)
        with on_disk(self._folder):
            values = self._adapter.values
            return examine(
                contributions,
                steps,
                self._strategy,
                values,
                config,
                command.round,
                {one.device: one.length for one in updates.values() if one.length is not None}
                if config.sums_at_edges
                else None,
            )

    def average(self, command: Aggregate, examined: Examined) -> AdapterReady:
        """Merge what was found sound, and keep it; names what is on disk then.

        Raises ProtocolError, ConfigError, DiskError.
        """
        adapter, round_ = self._adapter, command.round
        with self._stats.phases.measure("step"), on_disk(self._folder):
            merged = self._merged(command, examined.contributions)
            if (name := not_finite(merged)) is not None:
                raise ProtocolError(f"{name} of the merged adapter holds NaN or infinite values")
            adapter.hold(round_, merged)
            if folded := self._strategy.folded(merged):
                adapter.base_updates.add(folded)
        adapter.save(round_)
        remembered = self._memory.save(round_, self._strategy.state)
        self.mirror.put(*SETTINGS, *MADE)
        digests = adapter.seal(round_, *([remembered] if remembered else []))
        return AdapterReady(
            round_, adapter_ref(round_), remembered, examined.norms, digests=digests
        )

    def _merged(self, command: Aggregate, devices: Sequence[Contribution]) -> dict[str, Array]:
        """The next adapter. Raises ProtocolError, ConfigError."""
        strategy, current = self._strategy, self._adapter.values
        options = self._config.current.aggregation
        if options.sums == "flat":
            return strategy.aggregate(devices, current)
        if options.sums == "by_edge":
            whole = by_edge(devices, self.sums.shapes)
        else:
            whole = self.sums.total(command, devices)
        return mean_strategy(strategy, options.strategy).from_mean(whole.mean(), current)

    def forget_before(self, round_: int, needed: int | None = None) -> None:
        """The journal has a round's adapter: what that was made of is not needed any more.

        Devices are at work from the adapter of round `needed` on, if that is an older one.
        """
        oldest = round_ if needed is None else min(round_, needed)
        self.spool.drop(oldest)
        self._adapter.forget_before(oldest)
        self._memory.forget_before(round_)

    def keep_beginning(self) -> None:
        """Keep the adapter that the run begins with wherever there is a second copy of it."""
        self.mirror.put(*SETTINGS, *MADE)

    @property
    def is_kept_twice(self) -> bool:
        """Whether there is a second copy of what is on the disk."""
        return not isinstance(self.mirror, NoMirror)

    def keep_file(self, path: Path) -> None:
        """Keep what is in the spool wherever there is a second copy."""
        self.mirror.put(path.relative_to(self._folder).as_posix())

    def _carried(self, round_: int, update: Update, num_examples: int) -> Contribution:
        """An update as it counts in the average of a round: a stale one by its change."""
        own = self._contribution(
            update.round, update.device, num_examples, update.parts, update.edge
        )
        staleness = update.staleness(round_)
        if not staleness:
            return own
        config, strategy, adapter = self._config.current, self._strategy, self._adapter
        seed, weight = config.run.seed, config.aggregation.staleness_weight(staleness)
        start = strategy.start(own, adapter.at(update.round - 1), seed, update.round)
        onto = strategy.start(own, adapter.at(round_ - 1), seed, round_)
        return replace(own, stale=Stale(start, onto, weight))

    def _contribution(
        self,
        round_: int,
        device: str,
        num_examples: int,
        parts: Sequence[Holder],
        edge: str = "",
    ) -> Contribution:
        config = self._config.current
        files = self.spool.files(round_, device, parts)
        return Contribution(
            device, num_examples, files, config.rank(device), config.scaling(device), edge=edge
        )

    def _warn_of_weights(self, examples: Mapping[str, int], most: float) -> None:
        """Say once of a device that it is nearly all of the average, by its own word."""
        device, number = max(examples.items(), key=lambda item: item[1])
        share = number / sum(examples.values())
        if len(examples) > 2 and min(share, most) > HEAVY and device not in self._heavy:
            self._heavy.add(device)
            log.warning(
                "device %s is %.1f%% of the average: it says it has %d training examples; "
                "aggregation.max_weight_share bounds that",
                device,
                100 * share,
                number,
                extra={"device": device},
            )
