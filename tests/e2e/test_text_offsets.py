"""`logprobs.text_offset` of real answers: where each token's first byte lies in the text, however many tokens a character has."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from deploy.config.topology import cache_directory
from deploy.host.model_source import prepare
from tests.e2e.server import Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.xdist_group("model")]
SAID = "é東🙂𝄞 Hello 🙂🙂w — 👩‍👧 ﷽é"
PROMPTS = ["Grüße 東京 🙂𝄞", "plain"]
SAMPLED = {"temperature": 2.0, "max_tokens": 32, "ignore_eos": True}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server("--pd", "1p1d", "--kv-cache-memory", "256MiB") as serving:
        yield serving


@cache
def vocabulary() -> dict[int, bytes]:
    """What each token is made of, by GPT-2's own table."""
    prepared = prepare("smollm2-135m", (), "float32", cache_directory(), lambda *_: None)
    tokenizer = Tokenizer.from_file(str(Path(prepared.directory) / "tokenizer.json"))
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    return {
        token_id: bytes(byte_of[character] for character in token)
        for token, token_id in tokenizer.get_vocab().items()
        if all(character in byte_of for character in token)
    }


def places(ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text of some tokens, and the character that the first byte of each is in: byte by byte."""
    decoder, text = codecs.getincrementaldecoder("utf-8")("replace"), ""
    found = []
    for token_id in ids:
        for position, byte in enumerate(vocabulary()[token_id]):
            was_within = bool(decoder.getstate()[0])
            said = decoder.decode(bytes([byte]))
            if not position:
                begins_another = was_within and said.startswith("\ufffd")
                found.append(len(text) + begins_another)
            text += said
    return text + decoder.decode(b"", final=True), found


def told(server: Server, *, stream: bool, **asked: Any) -> dict[int, dict[str, Any]]:
    """Text, token ids and offsets of each choice; whole, or put together from chunks."""
    body = {"logprobs": 2, "return_token_ids": True, "stream": stream} | asked
    if not stream:
        chunks = [server.complete(**body)]
    else:
        reply = server.client.post("/v1/completions", json=body)
        assert reply.status_code == 200, reply.text
        lines = [line[6:] for line in reply.text.split("\n") if line.startswith("data: {")]
        chunks = [json.loads(line) for line in lines]
    found: dict[int, dict[str, Any]] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        own = found.setdefault(
            choice["index"], {"text": "", "ids": [], "offsets": [], "tokens": []}
        )
        own["text"] += choice["text"]
        own["ids"] += choice["token_ids"]
        own.setdefault("prompt", choice.get("prompt_token_ids"))
        if choice["logprobs"] is not None:
            own["offsets"] += choice["logprobs"]["text_offset"]
            own["tokens"] += choice["logprobs"]["tokens"]
    return found


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("echo", [False, True], ids=["alone", "echo"])
def test_offsets_of_a_text_with_characters_of_many_tokens(
    server: Server, stream: bool, echo: bool
) -> None:
    form = {"structured_outputs": {"choice": [SAID]}, "max_tokens": 200}
    for choice in told(server, stream=stream, echo=echo, prompt=PROMPTS, **form).values():
        before = choice["prompt"] if echo else []
        ids = [*before, *choice["ids"]]
        ids = ids[: len(choice["offsets"])]  # the end of turn is no part of the text
        text, offsets = places(ids)
        assert choice["text"] == text
        assert text.endswith(SAID)
        assert choice["offsets"] == offsets


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("echo", [False, True], ids=["alone", "echo"])
def test_offsets_of_broken_characters(server: Server, stream: bool, echo: bool) -> None:
    """Tokens by chance, most of them parts of characters."""
    known = sorted(vocabulary().items())
    parts = [one for one, said in known if not said.decode("utf-8", "ignore")][:150]
    bias = {str(one): 30.0 for one in parts}
    for seed in range(3):
        asked = {"prompt": PROMPTS[0], "echo": echo, "seed": seed, "logit_bias": bias}
        (choice,) = told(server, stream=stream, **asked, **SAMPLED).values()
        text, offsets = places([*(choice["prompt"] if echo else []), *choice["ids"]])
        assert choice["text"] == text
        assert choice["offsets"] == offsets


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_offsets_go_on_after_a_prompt_that_ends_within_a_character(
    server: Server, stream: bool
) -> None:
    ids = server.client.post("/tokenize", json={"prompt": "Zwölf 𝄞"}).json()["tokens"]
    for cut in range(len(ids) - 3, len(ids)):
        bias = {str(ids[cut]): 100.0}
        asked = {"prompt": ids[:cut], "echo": True, "logit_bias": bias}
        (choice,) = told(server, stream=stream, max_tokens=3, **asked).values()
        text, offsets = places([*ids[:cut], *choice["ids"]])
        assert choice["offsets"][:cut] == offsets[:cut]
        assert choice["offsets"] == sorted(choice["offsets"])
        assert len(choice["text"]) <= len(text) + 1
