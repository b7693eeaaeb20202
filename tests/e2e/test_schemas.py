"""Odd and hostile schemas against real processes: kept to, or refused by name, and nobody else waits for them."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from benchmarks.grammars.schemas import HOSTILE
from tests.e2e.odd_schemas import ODD
from tests.e2e.random_model import write_random_model
from tests.e2e.schema_campaign import asked, judged, run, validator_of
from tests.e2e.schema_prefix import reason_against
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
    replies: list[tuple[str, httpx.Response]] = []
    is_over = threading.Event()

    def attempt(name: str, schema: object) -> float:
        """How long its sender waited, and the bystander for one token; whichever is worse for its limit."""
        gaps.clear()
        before = time.monotonic()
        replies.append((name, asked(server.client, schema, 24)))
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
    for name, reply in replies:  # as JSON: a validator pays for these schemas, too
        verdict = judged(name, {}, reply)
        assert not verdict.failure, verdict
    assert server.audit()["balanced"]


BOOK = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["novel", "poem"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
        "next": {"$ref": "#"},
        "code": {"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"},
    },
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "text", "begins"),
    [
        *((True, text, True) for text in ("", '{"a', '{"a": [1, {"b": tru', '{"a\\', '{"a\\u00')),
        *((True, text, True) for text in ("-", "1.", "1e", "1e+", "0", "[1,", '{"a"', '{"a": 1,')),
        *((True, text, True) for text in ("[", " ", '"\\ud83d', '"\\ud83d\\ude0', "[1] ", "nul")),
        *((True, text, False) for text in ("}", "{]", "[1 2", "x", "01", "+1", "[,", '"\n', "1 2")),
        *((True, text, False) for text in ('{"a" 1', "{1", '"\\x', "trux", '"\\u00g', "--")),
        (BOOK, '{"kind": "no', True),
        (BOOK, '{"kind": "non', False),
        (BOOK, '{"ki', True),
        (BOOK, '{"kx', False),
        (BOOK, '{"tags": ["abc", "ab', True),
        (BOOK, '{"tags": ["abcd', False),
        (BOOK, '{"tags": ["a", "b", ', False),
        (BOOK, '{"tags": ["abcd"], ', False),
        (BOOK, '{"next": {"next": {"kind": "p', True),
        (BOOK, '{"next": {"next": {"kind": 1', False),
        (BOOK, '{"next": {"next": {"king": ', False),
        (BOOK, '{"code": "A', True),
        (BOOK, '{"code": "AB1', True),
        (BOOK, '{"code": "a', False),
        (BOOK, "[", False),
        ({"anyOf": [{"type": "null"}, {"const": {"a": [1, 2]}}]}, '{"a": [1,', True),
        ({"anyOf": [{"type": "null"}, {"const": {"a": [1, 2]}}]}, '{"a": [2,', False),
        ({"type": "boolean"}, "n", False),
        ({"type": ["boolean", "null"]}, "n", True),
    ],
)
def test_what_may_become_valid_is_told_from_what_cannot(
    schema: object, text: str, begins: bool
) -> None:
    assert (reason_against(validator_of(schema), text) == "") == begins
