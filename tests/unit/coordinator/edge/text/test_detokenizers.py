"""Streamed, whole and decoded text are one text, for every kind of tokenizer and after any prompt."""

from __future__ import annotations

import random

import pytest

from coordinator.cluster.service_api import StreamEvent
from coordinator.edge.answers.answer import joined
from coordinator.edge.answers.choice_text import ChoiceText, TextOptions
from coordinator.edge.text.detokenizer import REPLACEMENT
from coordinator.edge.text.tokenizer import WHOLE_DECODE_TOKENS, TextTokenizer
from engine.checkpoints.gguf_tokenizer import build_tokenizer
from protocol.finish import FinishReason
from protocol.sampling import SampledToken
from tests.unit.coordinator.edge.text.chat_models import TOKENIZERS, end_of_word, wordpiece
from tests.unit.engine.checkpoints.test_gguf_models import (
    LLAMA3,
    TEKKEN,
    of_trained,
    piece_vocabulary,
    trained,
)

NUM_SEQUENCES = 4000


OF_GGUF = {
    "gguf-sentencepiece": lambda: build_tokenizer(piece_vocabulary()),
    "gguf-no-prefix": lambda: build_tokenizer(piece_vocabulary(add_space_prefix=False)),
    "gguf-tekken": lambda: build_tokenizer(of_trained(trained(TEKKEN), "tekken")),
    "gguf-llama3": lambda: build_tokenizer(of_trained(trained(LLAMA3), "llama-bpe")),
}


OTHERS = {"wordpiece": wordpiece, "end-of-word": end_of_word}


@pytest.fixture(scope="module", params=[*TOKENIZERS, *OF_GGUF, *OTHERS])
def tokenizer(request) -> TextTokenizer:
    if request.param in OF_GGUF:
        return TextTokenizer(OF_GGUF[request.param]())
    if request.param in OTHERS:
        return TextTokenizer(OTHERS[request.param]().to_str().encode())
    return TextTokenizer(TOKENIZERS[request.param]().to_str().encode())


def streamed(tokenizer: TextTokenizer, prompt: list[int], ids: list[int], *, skip: bool) -> str:
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip, prompt=prompt)
    return "".join(detokenizer.push(one) for one in ids) + detokenizer.finish()


def test_text_of_random_ids_is_what_they_add_to_the_prompt(tokenizer):
    draw = random.Random(4)
    num_compared = 0
    for _ in range(NUM_SEQUENCES):
        prompt = [draw.randrange(tokenizer.size + 2) for _ in range(draw.randrange(8))]
        ids = [draw.randrange(tokenizer.size + 2) for _ in range(draw.randrange(24))]
        skip = draw.random() < 0.5
        before = tokenizer.decode(prompt, skip_special_tokens=skip)
        text = tokenizer.decode(prompt + ids, skip_special_tokens=skip)
        if text.startswith(before):
            num_compared += 1
            assert streamed(tokenizer, prompt, ids, skip=skip) == text[len(before) :], (prompt, ids)
    assert num_compared > 0.6 * NUM_SEQUENCES


def test_text_of_random_ids_alone_is_streamed_as_it_is_whole(tokenizer):
    """Every sequence, without exception, and as the edge tells it: in events of any size."""
    draw = random.Random(5)
    for _ in range(NUM_SEQUENCES):
        ids = [draw.randrange(tokenizer.size + 2) for _ in range(draw.randrange(1, 24))]
        skip = draw.random() < 0.5
        whole = tokenizer.decode(ids, skip_special_tokens=skip)
        assert streamed(tokenizer, [], ids, skip=skip) == whole, ids
        if skip and draw.random() < 0.1:
            assert offsets_and_text(tokenizer, ids, draw.randrange(1, 6))[1] == whole, ids


def test_text_of_many_ids_is_read_in_pieces(tokenizer):
    draw = random.Random(6)
    ids = [draw.randrange(tokenizer.size) for _ in range(WHOLE_DECODE_TOKENS + 500)]
    assert tokenizer.decode_long(ids) == tokenizer.decode(ids, skip_special_tokens=False)


def test_a_long_run_of_bytes_is_one_run():
    tokenizer = TextTokenizer(TOKENIZERS["sentencepiece"]().to_str().encode())
    good = [3 + byte for byte in "東京🙂".encode() * 20]
    for ids in (good, [*good, 3 + 0xE6], [*good, 300]):
        expected = tokenizer.decode(ids, skip_special_tokens=True)
        assert streamed(tokenizer, [], ids, skip=True) == expected


def test_the_first_word_keeps_its_space():
    tokenizer = TextTokenizer(TOKENIZERS["sentencepiece"]().to_str().encode())
    prompt = tokenizer.encode("How are", add_special_tokens=False)
    ids = tokenizer.encode("you today", add_special_tokens=False)
    assert streamed(tokenizer, prompt, ids, skip=True) == " you today"
    assert streamed(tokenizer, [], ids, skip=True) == "you today"


def test_a_character_that_the_prompt_began_is_shown_whole():
    tokenizer = TextTokenizer(TOKENIZERS["byte-level"]().to_str().encode())
    ids = tokenizer.encode("𝄞a", add_special_tokens=False)
    assert streamed(tokenizer, ids[:2], ids[2:], skip=True) == "𝄞a"
    assert streamed(tokenizer, ids[:2], ids[-1:], skip=True) == "a"


def cut_at(text: str, stops: tuple[str, ...], *, include: bool) -> tuple[str, str | None]:
    """The text up to the stop string that is complete first, the longest of several; told one character after another."""
    for end in range(1, len(text) + 1):
        over = sorted((stop for stop in stops if text[:end].endswith(stop)), key=len)
        if over:
            return text[: end if include else end - len(over[-1])], over[-1]
    return text, None


def some_stops(draw: random.Random, text: str) -> tuple[str, ...]:
    """Pieces of the text from any place to any other, and strings that nearly are."""
    starts = [draw.randrange(len(text)) for _ in range(draw.randrange(1, 4))]
    pieces = [text[start : start + draw.randrange(1, 9)] for start in starts]
    return tuple(piece + draw.choice(("", "", "\0")) for piece in pieces)


def check_stops(tokenizer: TextTokenizer, draw: random.Random) -> bool:
    ids = [draw.randrange(tokenizer.size) for _ in range(draw.randrange(1, 24))]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    if not whole:
        return False
    options = TextOptions(stops=some_stops(draw, whole), include_stop=draw.random() < 0.5)
    expected = cut_at(whole, options.stops, include=options.include_stop)
    choice, deltas, first = ChoiceText(0, tokenizer, options), [], 0
    while first < len(ids) and choice.finish_reason is None:
        size = draw.randrange(1, 6)
        some = [SampledToken(token_id=one) for one in ids[first : first + size]]
        first += size
        deltas.append(
            choice.push(StreamEvent(some, FinishReason.LENGTH if first >= len(ids) else None))
        )
    found = joined([delta for delta in deltas if delta is not None])
    assert (found.text, found.stop_reason) == expected, (ids, options)
    return expected[1] is not None


@pytest.mark.parametrize("count", [400, pytest.param(NUM_SEQUENCES, marks=pytest.mark.deep)])
def test_a_text_is_cut_at_a_stop_string_wherever_its_tokens_are_cut(tokenizer, count):
    draw = random.Random(count)
    assert sum(check_stops(tokenizer, draw) for _ in range(count)) > count // 4


def offsets_and_text(tokenizer: TextTokenizer, ids: list[int], size: int) -> tuple[list[int], str]:
    """Through a choice, `size` tokens an event."""
    choice, deltas = ChoiceText(0, tokenizer, TextOptions()), []
    for first in range(0, len(ids), size):
        some = [SampledToken(token_id=one) for one in ids[first : first + size]]
        reason = FinishReason.LENGTH if first + size >= len(ids) else None
        deltas.append(choice.push(StreamEvent(some, reason)))
    whole = joined([delta for delta in deltas if delta is not None])
    return whole.offsets, whole.text


@pytest.mark.parametrize("size", [1, 2, 100])
def test_offsets_count_characters_of_the_text(tokenizer, size):
    said = "é東🙂 Hello 🙂🙂world é"
    ids = tokenizer.encode(said, add_special_tokens=False)
    offsets, text = offsets_and_text(tokenizer, ids, size)
    assert len(offsets) == len(ids)
    assert offsets == sorted(offsets)
    for token_id, offset in zip(ids, offsets, strict=True):
        own = tokenizer.token_text(token_id)
        if token_id in tokenizer.byte_ids:  # shown with the whole run of bytes that it is in
            continue
        if REPLACEMENT not in own and offset and token_id not in tokenizer.special_ids:
            assert text.startswith((own, f" {own}"), offset)
