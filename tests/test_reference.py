"""Pages of docs/reference that are written from the code."""

from __future__ import annotations

import re
from pathlib import Path

from tools import cli_page, wire_page

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
