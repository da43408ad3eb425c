"""The certificates of `sfl run --tls`: made once for a run, also where it goes on later."""

from __future__ import annotations

from pathlib import Path

from sfl.cli.launch.certificates import drop_certificates, prepare_certificates
from sfl.config import RunConfig
from tests.house.fleets import fleet


def certified(folder: Path, config: RunConfig, tls: bool, resume: bool) -> dict[str, bytes]:
    """Every file that nodes find then."""
    prepare_certificates(config, folder, tls, resume)
    found = [path for path in (folder / "tls").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_run_that_goes_on_has_the_certificates_that_it_had(tmp_path: Path) -> None:
    config = RunConfig.model_validate(fleet(tmp_path, 2))
    first = certified(tmp_path, config, tls=True, resume=False)
    assert len(first) == 4 * 3
    assert (tmp_path / "tls").stat().st_mode & 0o077 == 0
    for asked in (False, True):
        assert certified(tmp_path, config, tls=asked, resume=True) == first
    drop_certificates(tmp_path)
    assert certified(tmp_path, config, tls=False, resume=True) == {}


def test_what_is_not_sound_any_more_is_made_anew_for_all_nodes(tmp_path: Path) -> None:
    config = RunConfig.model_validate(fleet(tmp_path, 2))
    first = certified(tmp_path, config, tls=True, resume=False)
    (tmp_path / "tls" / "d1" / "d1.pem").unlink()  # killed while it made them
    second = certified(tmp_path, config, tls=False, resume=True)
    assert second.keys() == first.keys()
    assert not set(second.values()) & set(first.values())


def test_another_run_in_the_same_folder_uses_tls_only_where_it_is_asked_for(tmp_path: Path) -> None:
    config = RunConfig.model_validate(fleet(tmp_path, 2))
    certified(tmp_path, config, tls=True, resume=False)
    assert certified(tmp_path, config, tls=False, resume=False) == {}
