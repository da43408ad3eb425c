"""Pages of docs/reference that are written from the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tools import cli_page, modules_page, wire_page

ROOT = Path(wire_page.__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"


def test_the_page_of_commands_is_what_the_commands_say() -> None:
    """Written anew where a command, an option or a default changes."""
    page = (REFERENCE / "cli.md").read_text()
    assert page == cli_page.document(), "run: python -m tools.cli_page > docs/reference/cli.md"


def test_every_option_has_a_meaning() -> None:
    """No row of the commands is without one."""
    assert not re.findall(r"^\| `[^|]*\| \|.*$", cli_page.document(), re.MULTILINE)


def test_the_page_of_the_wire_is_what_proto_says() -> None:
    """Written anew where a message, a limit or the version changes."""
    page = (REFERENCE / "wire.md").read_text()
    assert page == wire_page.document(), "run: python -m tools.wire_page > docs/reference/wire.md"


def test_the_page_of_modules_is_what_they_say_of_themselves() -> None:
    """Written anew where a module comes, goes, or says something else in its first line."""
    page = (REFERENCE / "modules.md").read_text()
    assert page == modules_page.document(), (
        "run: python -m tools.modules_page > docs/reference/modules.md"
    )
    assert "|  |\n" not in page.replace("| module | |\n", "")  # each says what it is


def test_files_that_the_docs_name_are_there() -> None:
    """Of the code, by their path from the top."""
    named = re.compile(r"`((?:sfl|device_agent|edge_server|cloud_aggregator|tools|tests)/[\w./]+)`")
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    found = {(page.name, path) for page in pages for path in named.findall(page.read_text())}
    assert len(found) > 40
    assert not sorted(pair for pair in found if not (ROOT / pair[1]).exists())


def test_tests_that_the_docs_name_are_there() -> None:
    """What holds a promise, by its name alone."""
    named = re.compile(r"`(test_\w+|Test[A-Z]\w+)`")
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    found = {(page.name, name) for page in pages for name in named.findall(page.read_text())}
    defined = re.compile(r"^\s*(?:async def |def |class )?(test_\w+|Test\w+)\b", re.MULTILINE)
    tests = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    there = {name for text in tests for name in defined.findall(text)}
    assert len(found) > 30
    assert not sorted(pair for pair in found if pair[1] not in there)


def test_every_field_of_proto_is_on_the_page() -> None:
    """The script reads each message, enum, field and value."""
    page = wire_page.document()
    for path in (ROOT / "proto" / "sfl" / "v1").glob("*.proto"):
        text = path.read_text()
        blocks = re.findall(r"^(?:message|enum) (\w+)", text, re.MULTILINE)
        fields = re.findall(r"^\s+[^/\n]*?(\w+) = \d+;", text, re.MULTILINE)
        assert blocks
        assert not [name for name in blocks if f"### {name}\n" not in page]
        assert not [name for name in fields if f"| `{name}` |" not in page]


def test_troubleshooting_quotes_real_messages() -> None:
    """Each heading is a part of a message in the code; NAME, N and the like stand for values."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    headings = re.findall(r"^### (.*)$", page, re.MULTILINE)
    quoted = [words for heading in headings for words in re.findall(r"`([^`]+)`", heading)]
    said = "\n".join(texts())
    assert len(quoted) > 40
    assert not [words for words in quoted if not all(part in said for part in parts(words))]


def parts(words: str) -> list[str]:
    """The words of a message between its values."""
    split = re.split(r"'?\b(?:NAME|TYPE|DIR|N|M|A|B)\b'?|\.\.\.|\. ", words)
    return [part.strip(" .,()") for part in split]


def texts() -> Iterator[str]:
    """Every text in the code, with a blank for each value in it."""
    for package in ("sfl", "device_agent", "edge_server", "cloud_aggregator"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                elif isinstance(node, ast.JoinedStr):
                    values = (getattr(part, "value", "") for part in node.values)
                    yield "".join(value if isinstance(value, str) else "" for value in values)
