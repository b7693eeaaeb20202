"""Fields of a file that nobody vouches for. Owns the sentences that name the file and the field; pure.

What is asked for is checked for kind and range; what is wrong is a ConfigError of one sentence, whatever
the value is: its text is cut short, so that a string of a gigabyte is not repeated.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAX_INTEGER = 2**31 - 1
_SHOWN_CHARACTERS = 80
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def shown(value: object) -> str:
    """The value in a sentence: one line, cut short."""
    try:
        text = repr(value[:_SHOWN_CHARACTERS] if isinstance(value, str | bytes | list) else value)
    except (ValueError, RecursionError):  # an integer of too many digits; a list nested too deep
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


def one_line(text: str, most: int = 2000) -> str:
    """The text without line breaks, and not without end."""
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[:most] + "…"


def reason(error: BaseException) -> str:
    """What an exception says, in a sentence of ours: its first line, cut short, and nothing that a terminal would obey."""
    line = str(error)[: 2 * _SHOWN_CHARACTERS].partition("\n")[0].strip()
    text = "".join(one if one.isprintable() else repr(one)[1:-1] for one in line)
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"


class Fields:
    """Named values that came from `where`, a file as a person would name it."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def refuse(self, name: str, why: str) -> NoReturn:
        """ConfigError: `where`: `name` `why`."""
        raise ConfigError(f"{self.where}: `{one_line(name)}` {why}")

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def integer(
        self, name: str, default: int | None = None, *, least: int = 1, most: int = MAX_INTEGER
    ) -> int:
        """A whole number from `least` to `most`; without a default it must be there."""
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(name, f"must be an integer from {least} to {most}, not {shown(value)}")
        return value

    def number(
        self, name: str, default: float | None = None, *, least: float = 0.0, above: bool = False
    ) -> float:
        """A finite number, not less than `least`, or more than it if `above`."""
        value = self.values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(name, f"must be a number, not {shown(value)}")
        if not abs(value) < math.inf or value < least or (above and value == least):
            bound = "more than" if above else "at least"
            self.refuse(name, f"must be a finite number, {bound} {least:g}, not {shown(value)}")
        try:
            return float(value)
        except OverflowError:
            self.refuse(name, f"must be a finite number, not {shown(value)}")

    def flag(self, name: str, *, default: bool) -> bool:
        """true or false."""
        value = self.values.get(name, default)
        if not isinstance(value, bool):
            self.refuse(name, f"must be true or false, not {shown(value)}")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        value = self.values.get(name, default)
        if not isinstance(value, str):
            self.refuse(name, f"must be a string, not {shown(value)}")
        return value

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One id, a list of them, or none; -1, which old files write for none, is none."""
        value = self.values.get(name)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        for one in ids:
            if isinstance(one, bool) or not isinstance(one, int) or not -1 <= one <= MAX_INTEGER:
                self.refuse(name, f"must be a token id or a list of them, not {shown(value)}")
        return tuple(dict.fromkeys(one for one in ids if one != -1))


def is_there(path: Path) -> bool:
    """Whether the directory has an entry of that name, even a link that leads nowhere: who put it there meant something."""
    return os.path.lexists(path)


def open_file(path: Path) -> BinaryIO:
    """A file to read; OSError for what is none. Devices have no end, and opening a pipe would wait for its writer."""
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")  # noqa: SIM115, PTH123
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file")
    return file


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """All of a file that has no reason to be larger than `max_bytes`."""
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > max_bytes:
                told = f"{path} has {size} bytes; no such file has more than {max_bytes}"
                raise ConfigError(told)
            return file.read()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error


def parse_object(raw: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `raw`, every name in it once; ConfigError when it is none."""
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except RecursionError:
        raise ConfigError(f"{where} is nested too deep to be read") from None
    except (ValueError, MemoryError) as error:
        raise ConfigError(f"{where} is not a JSON object: {reason(error)}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where} does not hold a JSON object")
    if _ESCAPED_SURROGATE.search(raw):
        _check_characters(value, where)
    return value


def _check_characters(value: dict[str, Any], where: str) -> None:
    """JSON can spell half of a character, which nothing can be made of."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"U+{ord(error.object[error.start]):04X}"
        raise ConfigError(f"{where} has {half} in a text, which is no character") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} is there twice")
    return found


def read_object(path: Path, max_bytes: int) -> dict[str, Any]:
    """The JSON object in `path`."""
    return parse_object(read_bytes(path, max_bytes), str(path))
