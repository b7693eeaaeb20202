"""What is refused before it costs anything: counted exactly, and never what could be served."""

from __future__ import annotations

import asyncio
import json
import sys
import unicodedata

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from coordinator.cluster.scripted_service import ScriptedService, say
from coordinator.edge.app import create_app
from coordinator.edge.http.bodies import MAX_CONTAINERS, BodyRoom, check_shape, shape_of
from coordinator.edge.http.error_replies import clipped
from coordinator.edge.telemetry.loop_lag import LoopLag
from coordinator.edge.text.byte_bound import NFC_SHRINKS
from coordinator.edge.text.tokenizer import TextTokenizer
from protocol.errors import InvalidRequest, Overloaded
from protocol.finish import FinishReason
from tests.unit.coordinator.edge.apis.openai.test_edge_refusals import COMPLETE, drive
from tests.unit.coordinator.edge.conftest import build_tokenizer

JSON = st.recursive(
    st.none() | st.integers() | st.text(alphabet='ab"\\[]{},:é東\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='k"\\,['), inner),
    max_leaves=30,
)


def counted(value) -> tuple[int, int]:
    """Containers and strings, by walking."""
    if isinstance(value, str):
        return 0, 1
    if isinstance(value, list):
        inner = [counted(item) for item in value]
        return 1 + sum(c for c, _ in inner), sum(s for _, s in inner)
    if isinstance(value, dict):
        inner = [counted(item) for item in value.values()]
        return 1 + sum(c for c, _ in inner), len(value) + sum(s for _, s in inner)
    return 0, 0


@given(value=JSON, ascii_only=st.booleans())
def test_a_shape_is_counted_exactly(value, ascii_only):
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    shape = shape_of(body)
    assert (shape.containers, shape.strings) == counted(value)


def test_text_full_of_brackets_is_text():
    check_shape(orjson.dumps({"prompt": '[{",\\' * 500_000}))


def test_one_container_more_is_refused():
    check_shape(orjson.dumps([[]] * (MAX_CONTAINERS - 1)))
    with pytest.raises(InvalidRequest, match=str(MAX_CONTAINERS + 1)):
        check_shape(orjson.dumps([[]] * MAX_CONTAINERS))


def of(tokenizer: Tokenizer) -> TextTokenizer:
    return TextTokenizer(tokenizer.to_str().encode())


def nfc() -> Tokenizer:
    tokenizer = build_tokenizer()
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


TEXTS = st.text(max_size=60) | st.text(alphabet="aA e\u0301\u212b\u0390\uac00\u1100\u1161 <|tol c>")
ANY = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@pytest.mark.parametrize("make", [build_tokenizer, nfc])
def test_no_text_has_fewer_tokens_than_its_bound(make):
    tokenizer = of(make())

    @ANY
    @given(text=TEXTS)
    def holds(text):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.bound.fewest_tokens(text) <= len(ids)

    holds()
    assert tokenizer.bound.longest_token_bytes > 1


def test_the_longest_token_is_the_bound():
    tokenizer = of(build_tokenizer())
    longest = "<|endoftext|>"
    assert tokenizer.bound.fewest_tokens(longest * 1000) == 1000
    assert len(tokenizer.encode(longest * 1000, add_special_tokens=False)) == 1000


def test_nfc_never_shrinks_more_than_the_bound_says():
    for code in range(sys.maxunicode + 1):
        if 0xD800 <= code < 0xE000:
            continue
        character = chr(code)
        apart = len(unicodedata.normalize("NFD", character).encode())
        own = len(character.encode())
        assert own <= 3 * apart
        assert apart <= 3 * own
    assert NFC_SHRINKS == 3 * 3


def changed(change) -> TextTokenizer:
    tokenizer = build_tokenizer()
    change(tokenizer)
    return of(tokenizer)


def lossy(tokenizer):
    tokenizer.normalizer = normalizers.NFKC()


def dropping(tokenizer):
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("a", "removed"), pre_tokenizers.ByteLevel()]
    )


def swallowing(tokenizer):
    tokenizer.add_tokens([AddedToken("<wide>", lstrip=True)])


@pytest.mark.parametrize("change", [lossy, dropping, swallowing])
def test_a_tokenizer_that_drops_something_has_no_bound(change):
    assert changed(change).bound.fewest_tokens("x" * 10**6) == 0


def test_an_alphabet_with_a_gap_has_no_bound():
    vocabulary = {character: index for index, character in enumerate("abc")}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    assert of(tokenizer).bound.fewest_tokens("z" * 1000) == 0


async def test_a_text_that_cannot_fit_is_refused_with_the_words_clients_know(client):
    error = (await client.post(COMPLETE, json={"prompt": "x" * 100_000})).json()["error"]
    assert error["message"].startswith(
        "This model's maximum context length is 256 tokens. However,"
    )
    assert "7693 tokens" in error["message"]


async def test_a_long_text_that_fits_is_served(client, service):
    reply = await client.post("/tokenize", json={"prompt": "<|endoftext|>" * 255})
    assert reply.json()["count"] == 255


async def test_many_ids_become_the_text_that_few_do(client):
    ids = [40, 41, 300, 1] * 2000
    few = (await client.post("/detokenize", json={"tokens": ids[:4]})).json()["prompt"]
    many = (await client.post("/detokenize", json={"tokens": ids})).json()["prompt"]
    assert many == few * 2000


async def test_a_client_that_leaves_its_upload_is_no_error(app, client, caplog):
    body = {"type": "http.request", "body": b"{", "more_body": True}
    await drive(app, [body, {"type": "http.disconnect"}])
    told = (await client.get("/metrics")).text
    assert (
        'baton_requests_rejected_total{model_name="tiny",status="499",type="client_disconnected"} 1.0'
        in told
    )
    assert "baton_client_disconnects_total{" in told
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


@pytest.mark.parametrize(
    ("encoding", "status"), [("gzip", 415), ("br, gzip", 415), ("Identity", 200)]
)
async def test_a_compressed_body_is_refused_by_its_header(client, service, encoding, status):
    service.default = say([5, 2], FinishReason.STOP)
    headers = {"content-encoding": encoding, "content-type": "application/json"}
    reply = await client.post("/v1/completions", content=b'{"prompt":"x"}', headers=headers)
    assert reply.status_code == status
    assert status == 200 or reply.json()["error"]["param"] == "Content-Encoding"


def test_bodies_share_a_room():
    room = BodyRoom(100)
    with room.hold() as first:
        first(60)
        with room.hold() as second:
            second(40)
            with pytest.raises(Overloaded):
                second(1)
        with room.hold() as third:
            third(40)
    assert room.used == 0


def test_what_is_told_back_has_an_end_and_both_its_sides():
    told = clipped(f"the model {'m' * 10**6} is not served; served: tiny")
    assert len(told) < 1000
    assert told.startswith("the model mmm")
    assert told.endswith("served: tiny")
    assert clipped("short") == "short"


async def test_a_loop_that_is_held_shows_its_lag(app):
    from prometheus_client import CollectorRegistry

    registry = CollectorRegistry()
    lag = LoopLag(registry)
    lag.start()
    loop = asyncio.get_running_loop()
    until = loop.time() + 0.3
    while loop.time() < until:
        pass
    passed = asyncio.Event()
    loop.call_later(0.01, passed.set)
    await passed.wait()
    lag.close()
    longest = registry.get_sample_value("baton_event_loop_lag_max_seconds")
    assert longest is not None
    assert longest > 0.2
    assert registry.get_sample_value("baton_event_loop_lag_seconds_count")


def no_bound() -> TextTokenizer:
    tokenizer = build_tokenizer()
    tokenizer.normalizer = normalizers.NFKC()
    return of(tokenizer)


@pytest.mark.parametrize(
    "text", ["x " * 300_000, "1" * 500_000, "東" * 200_000, "a<|endoftext|>" * 30_000]
)
def test_a_text_that_is_far_too_long_is_told_by_its_slices(text):
    tokenizer = no_bound()
    assert tokenizer.bound.fewest_tokens(text) == 0
    assert tokenizer.is_far_beyond(text, 256)


@pytest.mark.parametrize(
    "text", ["x " * 30_000, "1" * 50_000, "東" * 20_000, "<|endoftext|>" * 9_000, "é\n \t" * 20_000]
)
def test_a_text_that_fits_is_never_far_too_long(text):
    tokenizer = no_bound()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert not tokenizer.is_far_beyond(text, len(ids))


async def test_a_text_far_too_long_is_refused_with_the_words_clients_know(served_model):
    directory = served_model.directory
    (directory / "tokenizer.json").write_bytes(no_bound()._serialized)
    app = create_app(service=ScriptedService(), model=served_model)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        error = (await client.post(COMPLETE, json={"prompt": "x " * 100_000})).json()["error"]
    assert error["message"].startswith(
        "This model's maximum context length is 256 tokens. However,"
    )
    assert error["code"] == "context_length_exceeded"
