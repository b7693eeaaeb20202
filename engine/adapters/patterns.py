"""Which modules the patterns of an adapter_config.json mean. Owns that a pattern cannot take the process with it.

Names are compared here. What is more than a name is a regular expression of a file that nobody vouches for, and Python's
may take for ever: those are tried in a process of their own, with little time and memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PLAIN = re.compile(r"[\w.]*", re.ASCII)
_CPU_SECONDS, _MEMORY_BYTES, _PATIENCE_S = 2, 1 << 30, 120.0
_CHILD = f"""
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, ({_CPU_SECONDS}, {_CPU_SECONDS}))
resource.setrlimit(resource.RLIMIT_AS, ({_MEMORY_BYTES}, {_MEMORY_BYTES}))
asked = json.load(sys.stdin)
found = []
for pattern in asked["patterns"]:
    try:
        tried = re.compile(pattern)
        found.append([bool(tried.fullmatch(name)) for name in asked["names"]])
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        found.append(str(error) or type(error).__name__)
json.dump(found, sys.stdout)
"""
MOST_CHARACTERS = 100_000


def full_matches(patterns: Sequence[str], names: Sequence[str], where: str) -> list[list[bool]]:
    """Of each pattern, which names it matches as a whole; ConfigError, which begins with `where`, for one that is none, and
    for those that take too long."""
    size = sum(map(len, patterns))
    if size > MOST_CHARACTERS:
        raise ConfigError(f"{where} has patterns of {size} characters")
    apart = [pattern for pattern in patterns if not _PLAIN.fullmatch(pattern)]
    tried = iter(_tried_apart(apart, names, where) if apart else ())
    found = []
    for pattern in patterns:
        if _PLAIN.fullmatch(pattern):
            plain = re.compile(pattern)
            found.append([bool(plain.fullmatch(name)) for name in names])
            continue
        matches = next(tried)
        if isinstance(matches, str):
            raise ConfigError(
                f"{where} has a pattern that is no regular expression: {matches[:200]}"
            )
        found.append(matches)
    return found


def suffix_matches(keys: Sequence[str], names: Sequence[str], where: str) -> list[list[bool]]:
    """As PEFT compares the keys of `rank_pattern`: with the end of a name, from a dot on, or all of it."""
    if all(_PLAIN.fullmatch(key) for key in keys):
        tried = [re.compile(rf"(.*\.)?({key})") for key in keys]
        return [[bool(one.fullmatch(name)) for name in names] for one in tried]
    return full_matches([rf"(.*\.)?({key})" for key in keys], names, where)


def _tried_apart(patterns: Sequence[str], names: Sequence[str], where: str) -> list[Any]:
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps({"patterns": list(patterns), "names": list(names)}).encode(),
            capture_output=True,
            check=True,
            timeout=_PATIENCE_S,
        )
        found: list[Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigError(f"{where} has patterns that take too long to match") from error
    return found
