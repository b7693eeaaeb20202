"""What `--autoscale` and `--slo` mean. Owns their grammar; the planner owns what is made of it.

prefill=1..4,decode=1..8,total=10        ranges of the pools, and of both together
prefill=0..4,decode=0..8,idle=300        no worker at all once nobody has asked for 300 seconds
ttft:2000,tpot:100,goal:0.95             milliseconds, and the share of requests that must hold both
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from coordinator.planning.observations import EMPTY_DECODE, Limits, Range, Targets
from protocol.errors import ConfigError
from protocol.ids import MAX_WORKERS
from protocol.roles import COMPUTING, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DEFAULT_SLO = ("ttft:2000", "tpot:100")
"""MLPerf's server limits for an 8B model."""
DEFAULT_GOAL = 0.9
_RANGE = re.compile(r"(prefill|decode)=(\d{1,4})\.\.(\d{1,4})")
_TOTAL = re.compile(r"total=(\d{1,4})")
_IDLE = re.compile(r"idle=([1-9]\d{0,4})s?")
_TARGET = re.compile(r"(ttft|tpot):(\d{1,9}(?:\.\d+)?)(?:ms)?")
_GOAL = re.compile(r"goal:(0?\.\d+)")


def parts(text: str) -> list[str]:
    """`a,b c` → a, b, c."""
    return [part for part in re.split(r"[,\s]+", text.strip()) if part]


def slo_text(text: str) -> str:
    """One or more parts of --slo, as they are; ValueError says what to write."""
    for part in parts(text):
        if part.startswith("goal:") and not (_GOAL.fullmatch(part) and float(part[5:]) > 0):
            raise ValueError(
                f"{part!r}: the goal is a share of all requests, more than 0 and less than 1, as goal:0.95"
            )
        if _TARGET.fullmatch(part) is None and _GOAL.fullmatch(part) is None:
            raise ValueError(f"{part!r} is no target: write ttft:2000 tpot:100 (ms), or goal:0.95")
    return text


def autoscale_text(text: str) -> str:
    """One or more parts of --autoscale, as they are; ValueError says what to write."""
    for part in parts(text):
        if not any(known.fullmatch(part) for known in (_RANGE, _TOTAL, _IDLE)):
            raise ValueError(
                f"{part!r} is no range: write prefill=1..4,decode=1..8, total=10, or idle=300 (seconds)"
            )
    return text


def targets_of(texts: Iterable[str]) -> Targets:
    """All of --slo; ConfigError names what is missing or twice."""
    found: dict[str, float] = {}
    for part in _all_parts(texts, slo_text, "--slo"):
        name, _, number = part.partition(":")
        if name in found:
            raise ConfigError(f"--slo: {name} is there twice")
        found[name] = float(number.removesuffix("ms"))
    for name in ("ttft", "tpot"):
        if found.get(name, 0.0) <= 0:
            raise ConfigError(f"--slo: needs {name} in milliseconds, more than 0, as {name}:100")
    return Targets(found["ttft"] / 1e3, found["tpot"] / 1e3, found.get("goal", DEFAULT_GOAL))


def limits_of(texts: Iterable[str]) -> Limits:
    """All of --autoscale; ConfigError names what is missing, twice or upside down."""
    ranges: dict[Role, Range] = {}
    budget: int | None = None
    idle_s: float | None = None
    for part in _all_parts(texts, autoscale_text, "--autoscale"):
        total = _TOTAL.fullmatch(part)
        if total is not None:
            budget = int(total[1])
            continue
        if (idle := _IDLE.fullmatch(part)) is not None:
            idle_s = float(idle[1])
            continue
        match = _RANGE.fullmatch(part)
        assert match is not None
        role, least, most = Role(match[1]), int(match[2]), int(match[3])
        if role in ranges:
            raise ConfigError(f"--autoscale: {role} is there twice")
        if not (0 <= least <= most <= MAX_WORKERS and most):
            raise ConfigError(f"--autoscale: {part}: write 0 to {MAX_WORKERS}, the lower one first")
        ranges[role] = Range(least, most)
    for role in COMPUTING:
        if role not in ranges:
            raise ConfigError(f"--autoscale: says nothing of {role}; add {role}=1..4")
    limits = Limits(ranges[Role.PREFILL], ranges[Role.DECODE], _budget(ranges, budget))
    return _checked(limits if idle_s is None else replace(limits, idle_s=idle_s), idle_s)


def _budget(ranges: dict[Role, Range], budget: int | None) -> int:
    most = sum(each.most for each in ranges.values())
    return min(MAX_WORKERS, most) if budget is None else budget


def _checked(limits: Limits, idle_s: float | None) -> Limits:
    least = max(limits.prefill.least + limits.decode.least, 1)
    if not least <= limits.budget <= MAX_WORKERS:
        raise ConfigError(f"--autoscale: total={limits.budget} must be {least} to {MAX_WORKERS}")
    if limits.prefill.least > 0 == limits.decode.least:
        raise ConfigError(f"--autoscale: decode=0..{limits.decode.most}: {EMPTY_DECODE}")
    if idle_s is not None and limits.prefill.least:
        raise ConfigError(
            f"--autoscale: idle={idle_s:g}: no range begins at 0, so no pool is ever empty; write prefill=0..4"
        )
    return limits


def _all_parts(texts: Iterable[str], check: Callable[[str], str], flag: str) -> list[str]:
    found: list[str] = []
    for text in texts:
        try:
            check(text)
        except ValueError as error:
            raise ConfigError(f"{flag}: {error}") from None
        found += parts(text)
    return found
