"""What edges say that the run's model is, kept until the run has chosen one of it."""

from __future__ import annotations

import hashlib
import logging

from sfl.adapters.expected import check_manifest
from sfl.adapters.initial import check_given, initial_adapter
from sfl.adapters.manifest import AdapterManifest
from sfl.aggregation.contribution import Array
from sfl.config import RunConfig, RunSettings
from sfl.models.folder import ModelFolder, local_folder, open_model
from sfl.node.causes import cause_of
from sfl.rounds.values import EdgeFacts
from sfl.transport.frames.chunks import decode_adapter
from sfl.transport.security.signed import values_digest

log = logging.getLogger("sfl.cloud")


class ModelsSaid:
    """By a digest of all but the name of the base: two edges may call it differently."""

    def __init__(self, config: RunConfig, chosen: bool = False) -> None:
        self._settings: RunSettings = config.settings
        self.own = _own_look(config)
        """The run's model by its headers, where this machine has it."""
        self._said: dict[str, tuple[str, AdapterManifest, dict[str, Array]]] = {}  # by edge
        self._chosen = chosen

    def hear(self, edge: str, facts: EdgeFacts) -> tuple[str, int]:
        """(digest, blocks) of what an edge has. Raises ProtocolError for what cannot be the run's:
        held against this cloud's own copy of the model, where it has one."""
        manifest = AdapterManifest.from_json(facts.manifest)
        check_manifest(manifest, self._settings, self.own)
        given = decode_adapter(facts.given)
        check_given(manifest, given)
        digest = _digest(manifest, given)
        if not self._chosen:
            self._said[edge] = digest, manifest, given
        return digest, manifest.num_layers

    def use(self, digest: str, seed: int) -> tuple[AdapterManifest, dict[str, Array]]:
        """The manifest, and the adapter that the run begins with; the others are forgotten."""
        manifest, given = next(said[1:] for said in self._said.values() if said[0] == digest)
        self._said.clear()
        self._chosen = True
        return manifest, initial_adapter(manifest, seed, given)


def _digest(manifest: AdapterManifest, given: dict[str, Array]) -> str:
    whole = hashlib.sha256(repr((manifest.parameters, manifest.num_layers)).encode())
    whole.update(values_digest(given))
    return whole.hexdigest()


def _own_look(config: RunConfig) -> ModelFolder | None:
    """The run's model by its headers, where this machine has it; a broken one is as good as none.

    Asks nobody on the network.
    """
    try:
        folder = local_folder(config.model.path)
        if folder is None:
            return None
        try:
            return open_model(folder)
        except Exception:  # noqa: BLE001 - it may be here without its weights
            return open_model(folder, weights=False)
    except Exception as error:  # noqa: BLE001 - the edges have the model, and say what it is
        log.warning("this cloud cannot read the run's model: %s", cause_of(error))
        return None
