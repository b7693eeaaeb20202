"""Tokens to text and back: exact against the library's own decoder."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from coordinator.edge.answers.choice_text import StopStrings
from coordinator.edge.text.detokenizer import REPLACEMENT
from coordinator.edge.text.tokenizer import TextTokenizer
from protocol.errors import ConfigError, InvalidRequest

SAME_FIXTURE = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    deadline=None,
    max_examples=300,
)


def streamed(tokenizer: TextTokenizer, ids: list[int], *, skip: bool) -> list[str]:
    detokenizer = tokenizer.detokenizer(skip_special_tokens=skip)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


@SAME_FIXTURE
@given(ids=st.lists(st.integers(0, 399), max_size=40), skip=st.booleans())
def test_any_ids_stream_to_their_full_decode(tokenizer, ids, skip):
    expected = tokenizer.decode(ids, skip_special_tokens=skip)
    assert "".join(streamed(tokenizer, ids, skip=skip)) == expected


@SAME_FIXTURE
@given(text=st.text(max_size=40) | st.text(alphabet="🙂é東\u200d👨‍👩‍👧 a", max_size=40))
def test_valid_text_streams_without_replacement_characters(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = streamed(tokenizer, ids, skip=False)
    assert "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces) or REPLACEMENT in text


def test_a_character_is_shown_with_its_last_byte(tokenizer):
    ids = tokenizer.encode("𝄞", add_special_tokens=False)
    assert len(ids) == 4
    assert streamed(tokenizer, ids, skip=True) == ["", "", "", "𝄞", ""]


def test_an_unfinished_character_ends_as_a_full_decode_does(tokenizer):
    ids = tokenizer.encode("𝄞", add_special_tokens=False)[:3]
    assert streamed(tokenizer, ids, skip=True) == ["", "", "", REPLACEMENT]


def test_special_tokens_are_skipped_on_request(tokenizer):
    assert "".join(streamed(tokenizer, [1, 2], skip=True)) == ""
    assert "".join(streamed(tokenizer, [1, 2], skip=False)) == "<|im_start|><|im_end|>"


def sentencepiece(*, strip: bool) -> TextTokenizer:
    words = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["\u2581Hello", "\u2581", "wor", "ld", "\u2581東", "京", ","]
    tokenizer = Tokenizer(
        models.BPE({word: index for index, word in enumerate(words)}, [], byte_fallback=True)
    )
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    return TextTokenizer(tokenizer.to_str().encode())


PIECES = st.sampled_from(["Hello", " world", "東", "京", "🙂", "é", ",", " "])


@SAME_FIXTURE
@given(words=st.lists(PIECES, max_size=12), strip=st.booleans())
def test_sentencepiece_text_streams_to_its_full_decode(words, strip):
    tokenizer = sentencepiece(strip=strip)
    assert not tokenizer.is_byte_level
    known = {"Hello": [258], " world": [259, 260, 261], "東": [262], "京": [263], ",": [264]}
    ids = []
    for word in words:
        ids += known.get(word, [byte + 2 for byte in word.encode()])
    pieces = streamed(tokenizer, ids, skip=True)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)
    assert not any(REPLACEMENT in piece for piece in pieces)


def test_token_bytes_are_exact_where_text_cannot_be(tokenizer):
    first, *_ = tokenizer.encode("𝄞", add_special_tokens=False)
    assert tokenizer.token_bytes(first) == "𝄞".encode()[:1]
    assert tokenizer.token_text(first) == REPLACEMENT
    fallback = sentencepiece(strip=True)
    assert fallback.token_bytes(2 + 0xE2) == b"\xe2"
    assert fallback.token_text(258) == " Hello"


def test_a_damaged_tokenizer_is_a_configuration_error(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        TextTokenizer.from_directory(tmp_path)
    with pytest.raises(ConfigError):
        TextTokenizer.from_directory(tmp_path / "absent")


def truth(text: str, stops: list[str], *, include: bool) -> str:
    """Grow the text a character at a time until it ends with a stop string."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[:end] if include else text[: end - len(max(complete, key=len))]
    return text


AB = st.text(alphabet="ab東", max_size=24)
STOPS = st.lists(st.text(alphabet="ab東", min_size=1, max_size=4), min_size=1, max_size=3)


@given(pieces=st.lists(AB, max_size=10), stops=STOPS, include=st.booleans())
def test_any_split_of_a_text_stops_at_the_same_place(pieces, stops, include):
    strings = StopStrings(stops, include_match=include)
    shown = "".join(strings.push(piece) for piece in pieces) + strings.finish()
    assert shown == truth("".join(pieces), stops, include=include)


@given(text=AB, stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1))
def test_several_stops_one_character_at_a_time_never_show_a_stop(text, stops):
    strings = StopStrings(stops)
    shown = "".join(strings.push(character) for character in text) + strings.finish()
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert (strings.matched is not None) == any(stop in text for stop in stops)


def test_only_a_possible_stop_is_held_back():
    strings = StopStrings(["END"])
    assert [strings.push(piece) for piece in ("a", "xE", "N", "T", "EN")] == [
        *("a", "x", "", "ENT", "")
    ]
    assert strings.finish() == "EN"


@pytest.mark.parametrize(
    "model",
    [
        models.WordLevel({"a": 0}, unk_token="<unk>"),
        models.Unigram([("a", 0.0), ("b", -1.0)], byte_fallback=False),
    ],
)
def test_a_text_that_a_vocabulary_has_no_token_for_is_the_clients_to_change(model):
    tokenizer = TextTokenizer(Tokenizer(model).to_str().encode())
    assert tokenizer.encode("a", add_special_tokens=False) == [0]
    with pytest.raises(InvalidRequest, match="cannot read the text"):
        tokenizer.encode("東", add_special_tokens=False)
    with pytest.raises(InvalidRequest, match="cannot read the text"):
        tokenizer.guarded(()).encode("東", [], add_special_tokens=False)
