"""What a name in the settings stands for: something built in, or what an installed package brings.

A package names its plug-ins as entry points of one of the groups here (docs/plugins.md). None is
imported before its name is asked for, and none is looked for where a name is built in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, TypeVar

from sfl.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")

FAILURES = (Exception, SystemExit)
"""What a package's import may raise: a script without a guard calls sys.exit."""


@dataclass(frozen=True, slots=True)
class Package:
    """An installed package, as pip knows it."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


class Registry(Mapping[str, T]):
    """What is built in, by name, then what packages bring as entry points of `group`.

    Whether a name is known and what all are called takes no import of a package. A look-up raises
    ConfigError where its plug-in cannot be imported, is no `kind`, or shares its name with another
    package's. A name that is built in stays what it is, whatever a package brings under it.
    """

    def __init__(self, group: str, kind: Any, built_in: Mapping[str, T]) -> None:
        self.group, self.built_in = group, built_in
        self._kind = kind
        self._loaded: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        if name in self.built_in:
            return self.built_in[name]
        if name not in self._loaded:
            self._loaded[name] = self._load(self._point(name))
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.built_in
        yield from sorted(self._points)

    def __len__(self) -> int:
        return len(self.built_in) + len(self._points)

    def __contains__(self, name: object) -> bool:
        return name in self.built_in or name in self._points

    def package(self, name: str) -> Package | None:
        """The package that brings it; None where it is built in, or not known."""
        if name in self.built_in or name not in self._points:
            return None
        return _package(self._point(name))

    def implementation(self, name: str, reference: str) -> Any:
        """What `module:object` stands for, which the entry called `name` refers to."""
        if name in self.built_in:
            return resolve_name(reference)
        try:
            return resolve_name(reference)
        except FAILURES as error:
            problem = f"{reference} cannot be imported ({_said(error)})"
            raise self._error(self._point(name), problem) from error

    @cached_property
    def _points(self) -> dict[str, list[EntryPoint]]:
        """What packages bring beside what is built in; more than one where they share a name."""
        from importlib.metadata import entry_points

        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            if point.name not in self.built_in:
                found.setdefault(point.name, []).append(point)
        return found

    def _point(self, name: str) -> EntryPoint:
        first, *others = self._points[name]
        for other in others:
            raise self._error(other, f"the name is taken by {_package(first)}")
        return first

    def _load(self, point: EntryPoint) -> T:
        try:
            value: Any = point.load()
        except FAILURES as error:
            raise self._error(point, f"it cannot be imported ({_said(error)})") from error
        if not isinstance(value, self._kind):
            kind = type(value).__name__
            raise self._error(point, f"{point.value} is a {kind}, not a {self._kind.__name__}")
        own: T = value
        return own

    def _error(self, point: EntryPoint, problem: str) -> ConfigError:
        package = _package(point)
        return ConfigError(
            self.group,
            point.name,
            f"the plug-in of package {package}: {problem}",
            f"Install another version of {package.name}, or uninstall it.",
        )


def installed(name: str) -> Package | None:
    """The package of that name as it is installed here."""
    from importlib.metadata import PackageNotFoundError, metadata

    try:
        found = metadata(name)
    except PackageNotFoundError:
        return None
    return Package(found["Name"], found["Version"])


def _package(point: EntryPoint) -> Package:
    owner = point.dist
    return Package(owner.name, owner.version) if owner is not None else Package("unknown", "0")


def _said(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
