"""Text files of others: UTF-8 with or without a byte order mark, and what else a file turns out
to be, said as a sentence with its true place."""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import TextIO

from sfl.node.paths import amiss, nothing_there

_HEAD = 4096
_CHUNK = 1 << 20
_BEFORE = 200
_INNER = bytes(range(0x80, 0xC0))
"""Bytes within a character of UTF-8, which a window may begin with."""
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32 (little-endian)"),  # before UTF-16, whose mark begins it
    (codecs.BOM_UTF32_BE, "UTF-32 (big-endian)"),
    (codecs.BOM_UTF16_LE, "UTF-16 (little-endian)"),
    (codecs.BOM_UTF16_BE, "UTF-16 (big-endian)"),
)
_KINDS = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "ZIP (or an Office document)"),
    (b"\x28\xb5\x2f\xfd", "Zstandard"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"%PDF-", "PDF"),
    (b"SQLite format 3\x00", "SQLite"),
)
POINTER = b"version https://git-lfs.github.com/spec/"
"""What a file of Git LFS begins with, which stands for another."""
_TYPOGRAPHIC = (
    "\u2018\u2019\u201c\u201d\u2013\u2014\u2026\u20ac\u2022\u00a0\u00ab\u00bb\u00b0\u00a3"
)


class NotText(Exception):
    """A file is not text in UTF-8: what it is instead, and what to do about it."""

    def __init__(self, problem: str, fix: str) -> None:
        self.problem, self.fix = problem, fix
        super().__init__(problem)


def read_text(path: Path) -> str:
    """All of a text file, without its byte order mark. Raises NotText, OSError."""
    try:
        with open_text(path) as file:
            return file.read()
    except UnicodeDecodeError:
        raise not_utf8(path) from None


def open_text(path: Path, newline: str | None = None) -> TextIO:
    """The file opened to be read. Raises NotText where its first bytes say that it is no text.

    Reading on may still raise UnicodeDecodeError; `not_utf8` says where. Lines end with a line
    feed, a carriage return, or both, and with nothing else.
    """
    check_head(path)
    return path.open(encoding="utf-8-sig", newline=newline)


def check_head(path: Path) -> None:
    """Raise NotText where the first bytes are those of another encoding or kind of file, or where
    no file is there: a pipe would be waited for, and could be read only once."""
    if not nothing_there(path) and (wrong := amiss(path, "file")):
        raise NotText(wrong, "Name a file.")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    refuse_pointer(head)
    found = _encoding(head)
    if found is not None:
        raise NotText(f"is {found}, not UTF-8", "Save it as UTF-8.")
    for magic, kind in _KINDS:
        if head.startswith(magic):
            raise NotText(f"is a {kind} file, not text", "Unpack it, or name its format.")


def refuse_pointer(head: bytes) -> None:
    """Raise NotText where a file that begins so is only Git LFS's note of the real one."""
    if head.startswith(POINTER):
        raise NotText(
            "is a Git LFS pointer: the file itself was not fetched",
            "Fetch it with `git lfs pull`.",
        )


def not_utf8(path: Path) -> NotText:
    """Where the first byte that is not UTF-8 stands in the file, and what it probably is."""
    offset, line, around = _first_bad_byte(path)
    return NotText(
        f"not UTF-8 at byte {offset}, in line {line}; it looks like {_likely(around)}",
        "Save it as UTF-8.",
    )


def _encoding(head: bytes) -> str | None:
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    # Without a mark, every other byte of Western text in UTF-16 is zero.
    pairs = len(head) // 2
    for zeros, name in ((head[1::2], "little"), (head[0::2], "big")):
        if pairs >= 2 and zeros.count(0) > 0.9 * pairs and head.count(0) < 1.2 * pairs:
            return f"UTF-16 ({name}-endian, without a byte order mark)"
    return None


def _first_bad_byte(path: Path) -> tuple[int, int, bytes]:
    """Its offset, its line counted from 1, and the bytes around it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done, line, last = 0, 1, b""
    with path.open("rb") as file:
        while True:
            chunk = file.read(_CHUNK)
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                offset = done - pending + error.start
                cut = max(offset - done, 0)
                line += _line_ends(last, chunk[:cut])
                before = min(offset, _BEFORE)
                file.seek(offset - before)
                return offset, line, file.read(before).lstrip(_INNER) + file.read(_HEAD)
            assert chunk, "the file holds nothing but UTF-8"
            line += _line_ends(last, chunk)
            done, last = done + len(chunk), chunk[-1:]


def _line_ends(before: bytes, data: bytes) -> int:
    """Line ends in `data`; a pair that `before` began counts once."""
    pairs = data.count(b"\r\n") + (before == b"\r" and data[:1] == b"\n")
    return data.count(b"\n") + data.count(b"\r") - pairs


def _likely(data: bytes) -> str:
    """The encoding that bytes which are no UTF-8 are probably in."""
    escaped = data.decode("utf-8", "surrogateescape")
    bad = bytes(ord(c) - 0xDC00 for c in escaped if 0xDC80 <= ord(c) <= 0xDCFF)
    western = bad.decode("cp1252", "replace")
    ascii_letters = sum(c.isalpha() for c in escaped if ord(c) < 128)
    if len(bad) <= ascii_letters and all(c.isalpha() or c in _TYPOGRAPHIC for c in western):
        return "Windows-1252 (Western European)"
    import charset_normalizer  # reads 30 tables, which only this error needs

    best = charset_normalizer.from_bytes(data).best()
    return best.encoding.replace("cp125", "Windows-125") if best else "binary data"
