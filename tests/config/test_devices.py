"""A run's devices by name: found without a search, and a copy of the settings has its own."""

from __future__ import annotations

from collections.abc import Iterator

from sfl.config import RunSettings
from sfl.config.devices import DeviceEntry


class Counted(tuple[DeviceEntry, ...]):
    """Devices that know how often somebody went through them."""

    walks = 0

    def __iter__(self) -> Iterator[DeviceEntry]:
        Counted.walks += 1
        return super().__iter__()


def settings(count: int = 40) -> RunSettings:
    devices = [{"name": f"d{index}"} for index in range(count)]
    return RunSettings.model_validate({"model": {"path": "m"}, "devices": devices})


def test_devices_are_gone_through_once_for_all_names() -> None:
    own = settings().model_copy(update={"devices": Counted(settings().devices)})
    Counted.walks = 0
    for index in range(40):
        assert own.device(f"d{index}").name == f"d{index}"
        assert own.device_index(f"d{index}") == index
        assert own.knows(f"d{index}") and not own.knows(f"e{index}")
    assert Counted.walks == 1


def test_an_index_is_no_part_of_the_value() -> None:
    own, fresh = settings(), settings()
    own.device("d1")
    assert own == fresh and fresh == own
    assert own.model_dump_json() == fresh.model_dump_json() and repr(own) == repr(fresh)
    assert RunSettings.model_validate_json(own.model_dump_json()) == own


def test_a_copy_with_other_devices_finds_those() -> None:
    own = settings()
    assert own.device("d1").cut_layer == 1
    moved = tuple(entry.model_copy(update={"cut_layer": 0}) for entry in own.devices)
    for deep in (False, True):
        other = own.model_copy(update={"devices": moved}, deep=deep)
        assert other.device("d1").cut_layer == 0 and own.device("d1").cut_layer == 1
