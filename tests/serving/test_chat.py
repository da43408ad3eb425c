"""`sfl chat`: real processes at a pipe and at a terminal; what is remembered, and for how long."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import pytest
import tomli_w
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sfl.adapters.artifact import save_adapter
from sfl.adapters.lora import build_manifest
from sfl.cli.app import app
from sfl.cli.serve.chat import Asked, Conversation, lines
from sfl.cli.serve.source import Source
from sfl.cli.serve.speaker import WholeSpeaker
from sfl.config import LoraSettings, load_run
from sfl.data import load_tokenizer
from sfl.errors import ConfigError
from sfl.models.folder import open_model
from tests.house.federation import SFL, sfl
from tests.house.paths import MODEL, ROOT
from tests.house.tiny_models import busy_values
from tests.house.waiting import PATIENCE

PROMPT = "Turn on the lamp"
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"


def run_folder(folder: Path, model: Path = MODEL, topology: str = "vanilla", **data: str) -> Path:
    """As a run leaves it: its settings, and an adapter."""
    values = {
        "run": {"id": "t", "topology": topology, "output_dir": str(folder / "runs")},
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train": str(folder / "none.jsonl"), **data},
        "devices": [{"name": "d", "cut_layer": 1}],
    }
    own = folder / "runs" / "t"
    own.mkdir(parents=True)
    (own / "config.toml").write_text(tomli_w.dumps(values))
    (own / "summary.json").write_text("{}")
    manifest = build_manifest(open_model(model), "causal_lm", 0, LoraSettings(rank=4, alpha=8))
    save_adapter(own / "adapter", busy_values(manifest), manifest.peft_config)
    return own


def with_template(folder: Path) -> Path:
    """The quickstart's model, whose tokenizer has a chat template."""
    shutil.copytree(MODEL, folder / "model")
    path = folder / "model" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return folder / "model"


def that_never_ends(model: Path) -> Path:
    """The same, with a long context, and no way to its end mark."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 8192}))
    tensors = load_file(model / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in tensors:
            tensors[name][config["eos_token_id"]] = 0
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    return model


def piped(run: Path, typed: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SFL, "chat", "--run", str(run), "--max-new-tokens", "12", *options],
        input=typed,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


@pytest.mark.process
def test_what_is_piped_in_is_answered_as_generate_answers_it(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    said = sfl("generate", PROMPT, "--run", run, "--max-new-tokens", "12").stdout
    for options in ([], ["--split"]):
        done = piped(run, f"{PROMPT}\n\n/nonsense\n{PROMPT}\n/quit\nnever\n", *options)
        assert done.returncode == 0, done.stderr
        assert done.stdout == said * 2
        assert "each line is answered by itself" in done.stderr
        assert "/nonsense is none of" in done.stderr
        assert "Traceback" not in done.stderr
    base = piped(run, PROMPT, "--base")  # no line end behind it
    assert base.stdout != said and base.stdout.strip()


@pytest.mark.process
def test_an_adapter_of_a_folder_answers_with_a_run_and_without_one(tmp_path: Path) -> None:
    """A run's own adapter from elsewhere says what the run says, whole and over the split."""
    run = run_folder(tmp_path)
    asked = ("generate", PROMPT, "--max-new-tokens", "12")
    said = sfl(*asked, "--run", run).stdout
    base = sfl(*asked, "--run", run, "--base").stdout
    other = shutil.copytree(run / "adapter", tmp_path / "other")
    shutil.rmtree(run / "adapter")
    for options in (["--run", run], ["--model", MODEL], []):  # the adapter names its model
        assert sfl(*asked, *options, "--adapter", other, "--split").stdout == said != base
    assert sfl(*asked, "--model", MODEL, "--adapter", other).stdout == said
    assert sfl(*asked, "--model", MODEL).stdout == base
    assert piped(run, f"{PROMPT}\n", "--adapter", str(other)).stdout == said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "give --run, --adapter or --model"),
        (["--adapter", "here", "--best"], "three ways"),
        (["--adapter", "here"], "there is no adapter_config.json in it"),
    ],
)
def test_options_that_name_no_model_are_refused(given: list[str], words: str) -> None:
    done = CliRunner().invoke(app, ["generate", PROMPT, *given])
    said = done.output + str(done.exception)
    assert done.exit_code != 0 and words in " ".join(said.split())


@pytest.mark.process
def test_turns_are_remembered_until_a_reset_over_the_split_too(tmp_path: Path) -> None:
    run = run_folder(tmp_path, with_template(tmp_path), "u_shaped")
    typed = f"{PROMPT}\nand off\n/reset\nand off\n{PROMPT}\n"
    whole, split = piped(run, typed), piped(run, typed, "--split")
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout == split.stdout
    first, second, anew, last = whole.stdout.splitlines()
    assert second != anew and first != last  # what came before counts
    assert "by itself" not in whole.stderr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--run", "nothing-here"], "nothing-here"),
        (["--system", "Be brief."], "--system"),
    ],
)
@pytest.mark.process
def test_a_mistake_is_one_line(tmp_path: Path, given: list[str], words: str) -> None:
    done = piped(run_folder(tmp_path), f"{PROMPT}\n", *given)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


class Terminal:
    """A process at a terminal of its own, as a person has it."""

    def __init__(self, *arguments: str) -> None:
        self._own, its = pty.openpty()
        self.process = subprocess.Popen(
            [*SFL, *arguments],
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
            preexec_fn=_take_terminal,
            cwd=ROOT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TERM": "dumb"},
        )
        os.close(its)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def until(self, words: str) -> None:
        """Wait for these words, and forget what was printed up to them."""
        self.wait(lambda seen: words in seen)
        self.seen = self.seen.partition(words)[2]

    def wait(self, sound: Callable[[str], bool]) -> None:
        """Wait for something to be printed."""
        deadline = time.monotonic() + PATIENCE
        while not sound(self.seen):
            assert time.monotonic() < deadline, self.seen
            if select.select([self._own], [], [], 0.2)[0]:
                self.seen += os.read(self._own, 4096).decode(errors="replace")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._own)


def _take_terminal() -> None:
    """In the child: the terminal's Ctrl-C is for it."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for one in opened:
        one.close()


@pytest.mark.process
@pytest.mark.parametrize("split", [[], ["--split"]], ids=["whole", "split"])
def test_at_a_terminal_ctrl_c_stops_the_answer_and_not_the_chat(
    tmp_path: Path, terminals: list[Terminal], split: list[str]
) -> None:
    run = run_folder(tmp_path, that_never_ends(with_template(tmp_path)))
    options = ["chat", "--run", str(run), "--max-new-tokens", "8000", *split]
    own = Terminal(*options)
    terminals.append(own)
    own.until("> ")
    own.type(f"{PROMPT}\r")
    own.until(f"{PROMPT}\r\n")
    own.wait(lambda seen: bool(seen.strip()))  # the answer's first words
    own.type("\x03")
    own.until(" ...\r\n")
    own.until("> ")
    own.type("/reset\r")
    own.until("It begins anew")
    own.until("> ")
    own.type("\x04")
    assert own.process.wait(2 * PATIENCE) == 0


def test_ctrl_c_at_the_prompt_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed: list[str | type[BaseException]] = ["one", KeyboardInterrupt, "two", EOFError]

    def read(_: str) -> str:
        given = typed.pop(0)
        if isinstance(given, str):
            return given
        raise given

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert list(lines()) == ["one", "two"]
    assert "/quit or Ctrl-D ends" in capsys.readouterr().err


# -- what is said to the model --------------------------------------------------------------------


class Scripted:
    """Gives the same tokens each time, and keeps what it was given."""

    def __init__(self, tokens: Sequence[int], interrupt: int | None = None) -> None:
        self.tokens = tokens
        self.interrupt = interrupt
        self.asked: list[list[int]] = []

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def answer(self, ids: Sequence[int], most: int) -> Generator[int, None, None]:
        self.asked.append(list(ids))
        for number, token in enumerate(self.tokens[:most]):
            if number == self.interrupt:
                raise KeyboardInterrupt
            yield token


def conversation(
    tmp_path: Path, speaker: Scripted, context: int = 256, system: str = ""
) -> Conversation:
    model = with_template(tmp_path)
    run = run_folder(tmp_path, model)
    config, tokenizer = load_run(run / "config.toml"), load_tokenizer(model)
    return Conversation(
        speaker, tokenizer, config, context, Asked(Source("t", tmp_path), 8, system)
    )


def test_each_turn_is_said_with_those_before_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(MODEL)
    speaker = Scripted(tokenizer.encode(["lamp on"])[0])
    conversation(tmp_path, speaker, system="S").take(iter(["one", "two", "/reset", "three"]))
    texts = [tokenizer.decode(ids).replace(" ", "") for ids in speaker.asked]
    begin = "<system>S\n"
    assert texts == [
        f"{begin}<user>one\n<assistant>",
        f"{begin}<user>one\n<assistant>lampon\n<user>two\n<assistant>",
        f"{begin}<user>three\n<assistant>",
    ]
    assert capsys.readouterr().out == "lamp on\n" * 3


def test_an_answer_that_was_stopped_is_remembered_as_far_as_it_went(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(MODEL)
    ids = tokenizer.encode(["lamp on"])[0]
    speaker = Scripted(ids, interrupt=len(ids) - 1)
    own = conversation(tmp_path, speaker)
    own.take(iter(["one", "two"]))
    assert capsys.readouterr().out.count(" ...\n") == 2
    assert "<assistant>lamp" in tokenizer.decode(speaker.asked[1]).replace(" ", "")
    speaker.interrupt = 0  # before its first word
    own.take(iter(["three"]))


def test_what_no_longer_fits_is_forgotten_from_its_beginning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speaker = Scripted(load_tokenizer(MODEL).encode(["lamp on"])[0])
    own = conversation(tmp_path, speaker, context=60)
    own.take(iter(["Turn on the lamp"] * 6))
    assert len(speaker.asked) == 6
    assert max(map(len, speaker.asked)) <= 60
    assert len(speaker.asked[-1]) > len(speaker.asked[0])
    assert "forgotten" in capsys.readouterr().err
    own.take(iter(["lamp " * 100]))
    assert "too long" in capsys.readouterr().err
    assert len(speaker.asked) == 6


def test_a_failure_of_the_model_reaches_the_caller(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    config, model = load_run(run / "config.toml"), open_model(MODEL)
    speaker = WholeSpeaker(config, model, run / "adapter", load_tokenizer(MODEL))
    with pytest.raises(IndexError):  # a token that is none of the model's
        list(speaker.answer([10**6], 4))
    taken = speaker.answer([5, 6], 4)
    first = next(taken)
    taken.close()
    assert next(speaker.answer([5, 6], 4)) == first


def test_a_run_that_classifies_has_nothing_to_say(tmp_path: Path) -> None:
    from sfl.cli.serve.chat import chat

    run = run_folder(tmp_path)
    text = (run / "config.toml").read_text()
    labels = 'task = "sequence_classification"\nlabels = ["a", "b"]\n'
    (run / "config.toml").write_text(text.replace("[model]\n", f"[model]\n{labels}"))
    with pytest.raises(ConfigError, match="has no text to generate"):
        chat(Asked(Source(str(run), tmp_path), 8))
