"""Odd and hostile schemas against real processes: kept to, or refused by name, and nobody else waits for them."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator

import pytest

from tests.e2e.odd_schemas import HOSTILE, ODD
from tests.e2e.random_model import write_random_model
from tests.e2e.schema_campaign import is_beginning, run, tried
from tests.e2e.server import Server
from tests.patience import in_time

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("model")]
CUT_OFF_S = 2.0
CROWDED = 4.0
"""How much longer the machine may take than when nobody else is on it."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Weights drawn by chance write what no model would."""
    model = write_random_model(tmp_path_factory.mktemp("random"))
    with Server(str(model), "--pd", "1p1d", "--kv-cache-memory", "256MiB") as serving:
        yield serving


def test_an_odd_schema_is_kept_to_or_refused_by_name(server: Server) -> None:
    verdicts = run(server.client, list(ODD.items()), 60)
    assert not [verdict for verdict in verdicts if verdict.failure]
    kinds = {verdict.name: verdict.kind for verdict in verdicts}
    for name in ("recursive", "anchor", "tuple", "control tokens", "unicode keys", "fractions"):
        assert kinds[name] in ("stop", "length"), name
    for name, told in (("not", "not"), ("if", "if"), ("uniqueItems", "uniqueItems")):
        assert kinds[name].startswith("refused") and told in kinds[name]  # noqa: PT018 - one fact
    assert server.audit()["balanced"]


@pytest.mark.deep
def test_a_hostile_schema_is_cut_off_and_costs_nobody_else(server: Server) -> None:
    gaps: list[float] = []
    is_over = threading.Event()

    def attempt(name: str, schema: object) -> float:
        """How long its sender waited, and the bystander for one token; whichever is worse for its limit."""
        gaps.clear()
        before = time.monotonic()
        verdict = tried(server.client, name, schema, 24)
        assert not verdict.failure, verdict
        took_s = time.monotonic() - before
        return max(took_s / CROWDED, max(gaps, default=0.0))

    def stream() -> None:
        body = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True, "stream": True}
        while not is_over.is_set():
            with server.client.stream("POST", "/v1/completions", json=body) as lines:
                before = time.monotonic()
                for line in lines.iter_lines():
                    if line.startswith("data: {"):
                        gaps.append(time.monotonic() - before)
                        before = time.monotonic()

    bystander = threading.Thread(target=stream)
    bystander.start()
    try:
        for name, schema in HOSTILE.items():
            in_time(functools.partial(attempt, name, schema), CUT_OFF_S)
    finally:
        is_over.set()
        bystander.join()
    assert server.audit()["balanced"]


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("", True),
        ('{"a', True),
        ('{"a": [1, {"b": tru', True),
        ('{"a\\', True),
        ('{"a\\u00', True),
        ("-", True),
        ("1.", True),
        ("[1,", True),
        ('{"a"', True),
        ('{"a": 1,', True),
        ("}", False),
        ("{]", False),
        ("[1 2", False),
        ("x", False),
    ],
)
def test_the_beginning_of_json_is_told_from_other_text(text: str, begins: bool) -> None:
    assert is_beginning(text) == begins
