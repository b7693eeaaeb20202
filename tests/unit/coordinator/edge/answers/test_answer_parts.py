"""Text to reasoning, text and calls: the same however the text is cut, and what only looks like a call stays text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.edge.answers.answer import Delta, TextDelta, ToolCallDelta, joined
from coordinator.edge.answers.answer_parts import (
    CALL_READERS,
    REASONING_PARSERS,
    TOOL_CALL_PARSERS,
    Parsers,
    PartReader,
    ReasoningReader,
    formats_of,
)
from coordinator.edge.answers.tools import arguments_json
from coordinator.edge.text.chat_template import ChatTemplate
from deploy.config import values as options
from protocol.finish import FinishReason

NAMES = {"look", "go"}
LOOK = '{"name": "look", "arguments": {"at": "a } \\" b", "n": [1, {"x": 2}]}}'
GO = '{"name": "go", "arguments": {}}'
LOOKED = ("look", {"at": 'a } " b', "n": [1, {"x": 2}]})
WENT: tuple[str, dict[str, object]] = ("go", {})

CALLS = [
    ("hermes", f"<tool_call>\n{LOOK}\n</tool_call>", "", [LOOKED]),
    ("hermes", f"I look.\n<tool_call>{LOOK}</tool_call>", "I look.", [LOOKED]),
    (
        "hermes",
        f"<tool_call>{LOOK}</tool_call>\n<tool_call>{GO}</tool_call>\n",
        "",
        [LOOKED, WENT],
    ),
    ("hermes", f"<tool_call>{GO}</tool_call> Done.", " Done.", [WENT]),
    ("hermes", f"<tool_call>{LOOK}", "", [LOOKED]),
    (
        "hermes",
        '<tool_call>{"arguments": {"a": 1}, "name": "go"}</tool_call>',
        "",
        [("go", {"a": 1})],
    ),
    (
        "hermes",
        '<tool_call>{"arguments": {"n": [123456789012345678901234567890]}, "name": "go"}',
        "",
        [("go", {"n": [123456789012345678901234567890]})],
    ),
    (
        "pythonic",
        '[go(n=123456789012345678901234567890, m=[-1, {"x": 18446744073709551617}])]',
        "",
        [("go", {"n": 123456789012345678901234567890, "m": [-1, {"x": 18446744073709551617}]})],
    ),
    ("hermes", '<tool_call>{"name": "go"}</tool_call>', "", [WENT]),
    ("hermes", '<tool_call>{"name": "go", "arguments": null}</tool_call>', "", [WENT]),
    ("hermes", '<tool_call>{"name": "go", "arguments": "{\\"a\\": 1}"}', "", [("go", {"a": 1})]),
    ("hermes", f"<tool_call> is a tag, <tool_call>{GO}", "<tool_call> is a tag,", [WENT]),
    ("llama3_json", LOOK.replace("arguments", "parameters"), "", [LOOKED]),
    ("llama3_json", f"{LOOK}; {GO}", "", [LOOKED, WENT]),
    ("llama3_json", f"Well <|python_tag|>{GO}", "Well", [WENT]),
    (
        "llama3_json",
        '{"type": "function", "function": {"name": "go", "parameters": {"a": 1}}}',
        "",
        [("go", {"a": 1})],
    ),
    ("mistral", f"[TOOL_CALLS] [{LOOK}, {GO}]", "", [LOOKED, WENT]),
    ("mistral", f"[TOOL_CALLS][{GO}]", "", [WENT]),
    (
        "mistral",
        'Yes.[TOOL_CALLS]look[ARGS]{"a": 1}[TOOL_CALLS]go{}',
        "Yes.",
        [("look", {"a": 1}), WENT],
    ),
    ("mistral", '[TOOL_CALLS]go[CALL_ID]abc123456[ARGS]{"a": 1}', "", [("go", {"a": 1})]),
    (
        "pythonic",
        "[look(at='x', n=[1, {'y': None}]), go()]",
        "",
        [("look", {"at": "x", "n": [1, {"y": None}]}), WENT],
    ),
]
TEXTS = [
    ("hermes", "<tool_call> is how a call begins"),
    ("hermes", "a <tool_call>{not json}</tool_call> b"),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "look", "arguments": 5}</tool_call>'),
    ("hermes", '<tool_call>{"name": "look"'),
    ("hermes", "a < b, and <tool_cal"),
    ("hermes", " leading and trailing \n"),
    ("hermes", " \n"),
    ("llama3_json", '{"answer": 1}'),
    ("llama3_json", '{"name": "Ada", "born": 1815}'),
    ("llama3_json", f"Take {GO}"),
    ("llama3_json", "<|python_tag|>print(1)"),
    ("mistral", "[TOOL_CALLS] is a token"),
    ("mistral", "[TOOL_CALLS][1, 2]"),
    ("mistral", '[TOOL_CALLS]unknown[ARGS]{"a": 1}'),
    ("pythonic", "[1, 2]"),
    ("pythonic", "[look at that]"),
    ("pythonic", "[unknown(a=1)]"),
    ("pythonic", "[look(1)]"),
    ("pythonic", "[look(a=1"),
    ("pythonic", "plain"),
]


def read(reader, pieces):
    deltas = [reader.read(Delta(text=piece)) for piece in pieces]
    deltas.append(reader.read(Delta(finish_reason=FinishReason.STOP)))
    return [delta for delta in deltas if delta is not None]


def told_by(family, pieces, *, is_parallel=True):
    reader = PartReader(None, CALL_READERS[family](NAMES, ()), is_parallel=is_parallel)
    return joined(read(reader, pieces))


def calls_of(delta):
    assert len({call.call_id for call in delta.calls}) == len(delta.calls)
    assert [call.position for call in delta.calls] == list(range(len(delta.calls)))
    return [(call.name, json.loads(call.arguments)) for call in delta.calls]


def ways_to_cut(text):
    yield [text]
    yield list(text)
    yield from ([text[:place], text[place:]] for place in range(1, len(text)))


@pytest.mark.parametrize(("family", "text", "said", "calls"), CALLS)
def test_calls_are_found_however_the_text_is_cut(family, text, said, calls):
    arguments = None
    for pieces in ways_to_cut(text):
        delta = told_by(family, pieces)
        assert (delta.text.rstrip(), calls_of(delta)) == (said, calls), pieces
        assert delta.finish_reason == "tool_calls"
        assert arguments in (None, [call.arguments for call in delta.calls])
        arguments = [call.arguments for call in delta.calls]


@pytest.mark.parametrize(("depth", "calls"), [(300, 1), (1100, 0), (100_000, 0)])
def test_deep_arguments_are_a_call_or_text(depth, calls):
    nested = "[" * depth + "]" * depth
    text = f'<tool_call>{{"arguments": {{"a": {nested}}}, "name": "go"}}</tool_call>'
    delta = told_by("hermes", [text])
    assert len({call.call_id for call in delta.calls}) == calls
    assert delta.text == ("" if calls else text)
    for call in delta.calls:
        assert nested in call.arguments
        assert nested in arguments_json(call.arguments)


@pytest.mark.parametrize(("family", "text"), TEXTS)
def test_what_only_looks_like_a_call_stays_text(family, text):
    for pieces in ways_to_cut(text):
        delta = told_by(family, pieces)
        assert (delta.text, delta.calls, delta.finish_reason) == (text, [], "stop"), pieces


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(CALL_READERS)),
    st.lists(
        st.one_of(
            st.text(alphabet=' \n{}[]<>"\\:,;|ab', max_size=5),
            st.sampled_from(
                [
                    LOOK,
                    GO,
                    '{"name": "',
                    '", "arguments": {',
                    "<tool_call>",
                    "</tool_call>",
                    "[TOOL_CALLS]",
                    "[ARGS]",
                    "<|python_tag|>",
                    "look",
                    "[go()]",
                    "go(",
                ]
            ),
        ),
        max_size=8,
    ),
    st.integers(1, 7),
)
def test_no_text_is_read_otherwise_in_pieces(family, words, size):
    text = "".join(words)
    whole = told_by(family, [text])
    cut = told_by(family, [text[start : start + size] for start in range(0, len(text), size)])
    assert cut.text == whole.text
    assert [(call.name, call.arguments) for call in cut.calls] == [
        (call.name, call.arguments) for call in whole.calls
    ]
    if not whole.calls:
        assert whole.text == text


def test_the_name_comes_once_and_arguments_as_they_are_written():
    pieces = [
        "<tool_call>",
        '{"name": "look", "argum',
        'ents": {"at"',
        ': "x',
        '"}',
        "}</tool_call>",
    ]
    reader = PartReader(None, CALL_READERS["hermes"](NAMES, ()), is_parallel=True)
    parts = [part for delta in read(reader, pieces) for part in delta.parts]
    assert isinstance(parts[0], ToolCallDelta)
    assert (parts[0].name, parts[0].call_id[:5], parts[0].arguments) == ("look", "call_", "")
    rest = [(part.name, part.arguments) for part in parts[1:] if isinstance(part, ToolCallDelta)]
    assert rest == [("", '{"at"'), ("", ': "x'), ("", '"}')]


def test_cut_off_arguments_are_told_as_far_as_they_came():
    reader = PartReader(None, CALL_READERS["hermes"](NAMES, ()), is_parallel=True)
    told = [reader.read(Delta(text='<tool_call>{"name": "look", "arguments": {"at": "x'))]
    told.append(reader.read(Delta(text=" y", finish_reason=FinishReason.LENGTH)))
    delta = joined([each for each in told if each is not None])
    assert (delta.calls[0].arguments, delta.finish_reason) == ('{"at": "x y', "length")


def test_without_parallel_calls_the_first_is_the_only_one():
    delta = told_by("hermes", [f"<tool_call>{LOOK}</tool_call><tool_call>{GO}"], is_parallel=False)
    assert calls_of(delta) == [LOOKED]


@pytest.mark.parametrize(
    ("text", "is_within", "thought", "said"),
    [
        ("<think>a b</think>\n\nc", False, "a b", "c"),
        ("\n<think>\na</think>c </think> d", False, "\na", "c </think> d"),
        ("a</think> c", True, "a", "c"),
        ("plain <think>", False, "", "plain <think>"),
        ("<thin", False, "", "<thin"),
        ("<think>cut </thi", False, "cut </thi", ""),
        ("cut", True, "cut", ""),
        ("", False, "", ""),
    ],
)
def test_reasoning_ends_at_its_tag(text, is_within, thought, said):
    for pieces in ways_to_cut(text):
        reader = PartReader(ReasoningReader(is_within=is_within), None, is_parallel=True)
        delta = joined(read(reader, pieces))
        assert (delta.reasoning, delta.text) == (thought, said), pieces


def test_reasoning_may_name_a_call_without_making_it():
    text = f"<think>maybe <tool_call>{LOOK}</think><tool_call>{GO}</tool_call>"
    reader = PartReader(ReasoningReader(), CALL_READERS["hermes"](NAMES, ()), is_parallel=True)
    delta = joined(read(reader, list(text)))
    assert delta.reasoning == f"maybe <tool_call>{LOOK}"
    assert calls_of(delta) == [WENT]


def test_no_token_is_lost_while_text_waits():
    reader = PartReader(None, CALL_READERS["hermes"](NAMES, ()), is_parallel=True)
    told = [
        reader.read(Delta(text="a", token_ids=[1])),
        reader.read(Delta(text="<tool", token_ids=[2])),
        reader.read(Delta(text="_ca", token_ids=[3])),
        reader.read(Delta(text="x", token_ids=[4], finish_reason=FinishReason.STOP)),
    ]
    assert [delta and delta.token_ids for delta in told] == [[1], None, None, [2, 3, 4]]
    assert told[3] is not None
    assert told[3].parts == [TextDelta("<tool_cax")]


def test_the_operators_choices_are_those_that_there_are():
    assert set(options.tool_call_parser.names) == set(TOOL_CALL_PARSERS)
    assert set(options.reasoning_parser.names) == set(REASONING_PARSERS)


@pytest.mark.parametrize(
    ("source", "parsers", "family", "thinks"),
    [
        ("<tool_call> <think></think>", Parsers(), "hermes", True),
        ("[TOOL_CALLS]", Parsers(), "mistral", False),
        ("<|python_tag|>", Parsers(), "llama3_json", False),
        ("[func_name1(params_name1=x)]", Parsers(), "pythonic", False),
        ("", Parsers(), None, False),
        ("<tool_call></think>", Parsers("off", "off"), None, False),
        ("", Parsers("mistral", "think"), "mistral", True),
    ],
)
def test_the_template_says_how_a_model_writes_unless_the_operator_does(
    tokenizer, source, parsers, family, thinks
):
    formats = formats_of(ChatTemplate({"default": source}, {}), tokenizer, parsers)
    assert (formats.family, formats.thinks) == (family, thinks)
