"""What `baton status` and `baton scale` say beside the table."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.commands.chat import ServerError
from deploy.commands.scale import _progress, is_reached
from deploy.commands.status import headline, notes, plain_console, worker_table

WORKER = {"id": "decode-0", "role": "decode", "state": "ready", "pid": 7, "node": "b 10.0.0.2"}
SLO = {
    "ttft_ms": 2000.0,
    "tpot_ms": 100.0,
    "goal": 0.9,
    "window_s": 300.0,
    "requests": 80,
    "refused": 2,
    "failed": 0,
    "attained": 0.975,
    "goodput_per_s": 0.26,
}


def view(**more: Any) -> dict[str, Any]:
    return {
        "workers": [WORKER],
        "lost": [],
        "target": {"prefill": 0, "decode": 2},
        "scaling": {"leaving": [], "refused": [], "waiting": [], "away": "", **more},
    }


def waits(name: str = "decode-1") -> list[dict[str, Any]]:
    return [{"id": name, "role": "decode", "waits_for": "a node with decode_slot 1", "for_s": 12.4}]


STORE = {
    "kept_blocks": 812,
    "waiting_blocks": 0,
    "dropped_blocks": 0,
    "lent_memory_blocks": 416,
    "lent_disk_blocks": 96,
    "disk_blocks": 300,
    "disk_bytes": 220 << 20,
    "disk_limit_bytes": 20 << 30,
    "disk_lag_s": 0.0,
    "disk_proofs_failed": 0,
    "disk_errors": 0,
}


def test_a_store_says_what_it_has_by_tier_and_only_then_what_is_wrong() -> None:
    worker = WORKER | {"id": "store-0", "role": "store", "blocks": {"cached": 30, "held": 10}}
    (line,) = notes(view() | {"workers": [worker | {"store": STORE}]})
    assert line == (
        "store-0: 812 blocks kept, 40 in memory · 300 on disk (220.0 MiB of 20.0 GiB) · "
        "lent 416 from memory, 96 from disk"
    )
    trouble = {"waiting_blocks": 3, "disk_proofs_failed": 2, "disk_errors": 1, "disk_lag_s": 0.25}
    (line,) = notes(view() | {"workers": [worker | {"store": STORE | trouble}]})
    for told in ("3 still to be kept", "2 damaged on disk", "1 errors", "0.2 s behind"):
        assert told in line


def test_an_operator_reads_sizes_waits_ray_wishes_and_the_slo() -> None:
    shown = view(waiting=waits(), away="Ray is away (lost)")
    shown["pools"] = {
        "prefill": {"target": 1, "ready": 1, "starting": 0, "draining": 0, "waiting": 0},
        "decode": {"target": 3, "ready": 1, "starting": 1, "draining": 0, "waiting": 1},
    }
    shown["autoscaler"] = {
        "enabled": True,
        "needs": {"prefill": 1, "decode": 3},
        "reason": "decode needs 3: full",
        "trouble": None,
        "beyond_reach": None,
    }
    shown["slo"] = SLO
    assert notes(shown) == [
        "prefill 1 of 1 · decode 1 of 3 (1 starting, 1 waiting)",
        "workers can be neither started nor stopped: Ray is away (lost)",
        "decode-1 waits for a node with decode_slot 1 (12 s)",
        "autoscaler wants prefill 1, decode 3: decode needs 3: full",
        "SLO TTFT 2000 ms, TPOT 100 ms: 97.5% of 80 requests (goal 90%), 2 refused · goodput 0.26 requests/s, over 300 s",
    ]
    assert "node" in [column.header for column in worker_table(shown).columns]


def test_an_older_server_is_shown_too() -> None:
    assert notes({"workers": [WORKER], "ready": True}) == []


def test_scale_says_what_it_waits_for() -> None:
    assert _progress(view(waiting=waits())) == "decode-1 waits for a node with decode_slot 1"
    assert _progress(view()) == "1 starting up"
    assert _progress(view(away="Ray is away (lost)")) == "Ray is away (lost), 1 starting up"


def test_many_refusals_of_one_reason_are_one_sentence() -> None:
    refused = [{"id": f"decode-{n}", "reason": "28 of 199 workers fit"} for n in range(1, 200)]
    with pytest.raises(ServerError) as told:
        is_reached(view(refused=refused))
    assert str(told.value) == "decode-1 and 198 more were not started: 28 of 199 workers fit"


def residency(state: str, **more: Any) -> dict[str, Any]:
    told = {"state": state, "waiting": 0, "expires_in_s": None, "failure": ""}
    return {"ready": False, "requests": {"live": 0}, "residency": told | more}


def test_an_operator_of_several_models_reads_how_each_is() -> None:
    shown = view()
    counts = {"target": 1, "ready": 1, "starting": 0, "draining": 0, "waiting": 0}
    shown["models"] = {
        "red": residency("loaded", expires_in_s=240.4)
        | {"pools": {"decode": counts}, "requests": {"live": 3}},
        "blue": residency("loading", waiting=2),
        "green": residency("failed", failure="the file is torn"),
        "grey": {"ready": True, "requests": {"live": 0}, "slo": SLO},
    }
    red, blue, green, grey = notes(shown)
    assert red == "red: loaded, goes in 240 s · decode 1 of 1 · 3 requests"
    assert blue == "blue: loading · 0 requests · 2 wait for it"
    assert green == "green: failed (the file is torn) · 0 requests"
    assert grey.startswith("grey: ready · 0 requests · SLO TTFT 2000 ms")


def test_adapters_in_memory_are_shown_with_who_has_them_and_no_more_than_fit() -> None:
    shown = view()
    one = {"name": "sql", "workers": ["decode-0", "prefill-0"]}
    shown["adapters"] = {"registered": 1000, "resident": [one, *[one | {"name": "x"}] * 31]}
    (told,) = notes(shown)
    assert told.startswith("1000 adapters, in memory: sql (decode-0, prefill-0), x (")
    assert told.endswith(" and 22 more")
    shown["adapters"] = {"registered": 2, "resident": []}
    assert notes(shown) == ["2 adapters, in memory: none"]


@pytest.mark.parametrize("name", ["team/model[red]", "[/x]", "a:key:b"])
def test_names_stand_as_they_are(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = plain_console()
    console.print(headline({"model": name, "ready": True, "requests": {"live": 0}}))
    console.print(worker_table({"workers": [WORKER | {"node": name}]}))
    assert capsys.readouterr().out.count(name) == 2
