"""`baton autoscale`: what its words mean, and how settings read."""

from __future__ import annotations

import pytest

from deploy.commands.autoscale import describe, make_parser, parse_wish
from protocol.errors import ConfigError

SETTINGS = {
    "mode": "dry-run",
    "ttft_ms": 2000.0,
    "tpot_ms": 100.0,
    "goal": 0.9,
    "prefill": [1, 4],
    "decode": [2, 8],
    "total": 10,
}


def test_words_are_those_of_the_servers_own_options() -> None:
    assert parse_wish(["prefill=1..4,decode=2..8", "total=10", "ttft:500ms", "goal:0.95"]) == {
        "prefill": [1, 4],
        "decode": [2, 8],
        "total": 10,
        "ttft_ms": 500.0,
        "goal": 0.95,
    }
    assert parse_wish([]) == {}


@pytest.mark.parametrize("word", ["prefill=3", "ttft=5", "goal:1.0", "goal:2", "x"])
def test_what_is_not_understood_says_what_to_write(word: str) -> None:
    with pytest.raises(ConfigError, match=r"write prefill=1\.\.4"):
        parse_wish([word])
    with pytest.raises(ConfigError, match="twice"):
        parse_wish(["ttft:1", "ttft:2"])


def test_one_mode_at_a_time() -> None:
    assert make_parser().parse_args(["--dry-run", "ttft:5"]).mode == "dry-run"
    with pytest.raises(ConfigError):
        make_parser().parse_args(["--on", "--off"])


def test_settings_read_well() -> None:
    wants = {"decision": "scale", "prefill": 2, "decode": 3, "reason": "more"}
    shown = {
        "enabled": True,
        "dry_run": True,
        "wants": wants,
        "reason": "decode needs 3",
        "trouble": None,
        "beyond_reach": None,
        "settings": SETTINGS,
    }
    assert describe(shown).splitlines() == [
        "mode      dry-run",
        "slo       ttft:2000 tpot:100 goal:0.9",
        "ranges    prefill=1..4,decode=2..8,total=10",
        "would     have prefill=2 decode=3: decode needs 3",
    ]
    bare = dict.fromkeys(SETTINGS) | {"mode": "off"}
    assert describe({"enabled": False, "settings": bare}) == "mode      off"
