"""Calls that a grammar lets through, and what their readers make of them: for every family, forced and free."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import orjson
import pytest

from coordinator.edge.answers.answer import Delta, joined
from coordinator.edge.answers.answer_parts import CALL_READERS, PartReader
from coordinator.edge.answers.call_layouts import DELIMITERS, FAMILIES, Calls
from coordinator.edge.answers.call_readers import MARK
from coordinator.edge.answers.tools import Tool
from engine.grammar.compiler import GrammarCompiler
from engine.grammar.guide import allowed
from engine.grammar.vocabulary import GrammarVocabulary
from protocol.constraints import Constraint, ConstraintKind
from protocol.errors import InvalidRequest
from protocol.finish import FinishReason
from protocol.sampling import SamplingParams

EOS = 256
LOOK = {
    "type": "object",
    "properties": {
        "at": {"enum": ["x", "yé\U0001f642", 'a"b/']},
        "far": {"type": "boolean"},
        "n": {"$ref": "#/$defs/number"},
    },
    "required": ["at"],
    "additionalProperties": False,
    "$defs": {"number": {"type": "integer", "minimum": 0, "maximum": 12}},
}
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
OPTIONAL = {
    "type": "object",
    "properties": {"a": {"type": "null"}, "b": {"type": "boolean"}, "c": {"const": [1, {"k": 2}]}},
    "additionalProperties": False,
}
SCHEMAS = {"look": LOOK, "look_around": NOTHING, "some": OPTIONAL}
TOOLS = [Tool(name, schema) for name, schema in SCHEMAS.items()]
MODELS = {
    "hermes": [],
    "hermes of tokens": ["<tool_call>", "</tool_call>"],
    "llama3_json": [],
    "llama3_json of tokens": ["<|python_tag|>"],
    "mistral": [],
    "mistral of tokens": ["[TOOL_CALLS]"],
    "mistral that names": ["[TOOL_CALLS]", "[ARGS]"],
    "mistral that numbers": ["[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"],
    "pythonic": [],
}
SPELLED = {
    "hermes": '<tool_call>\n{"name": "look", "arguments": {"at": "x"}}\n</tool_call>',
    "llama3_json": '{"name": "look", "parameters": {"at": "x"}}',
    "mistral": '[TOOL_CALLS][{"name": "look", "arguments": {"at": "x"}}]',
    "mistral that names": '[TOOL_CALLS]look[ARGS]{"at": "x"}',
    "mistral that numbers": '[TOOL_CALLS]look[CALL_ID]abcdefgh9[ARGS]{"at": "x"}',
    "pythonic": '[look(at="x")]',
}


class Model:
    """A vocabulary of bytes with the delimiters that a model has as control tokens."""

    def __init__(self, kind):
        self.family = kind.split()[0]
        self.controls = MODELS[kind]
        self.ids = {name: EOS + 1 + place for place, name in enumerate(self.controls)}
        spelled = [bytes([byte]) for byte in range(256)] + [b""] * (1 + len(self.controls))
        self.vocabulary = GrammarVocabulary(spelled, (EOS,), {"<end>": EOS, **self.ids})
        self.compiler = GrammarCompiler(self.vocabulary)

    def guide(self, way, *, is_parallel=True, tools=TOOLS):
        schemas = [dict(tool.parameters) for tool in tools]
        calls = Calls(tools, schemas, is_parallel, self.controls)
        layout = getattr(FAMILIES[self.family](), way)(calls)
        text = orjson.dumps({"type": "structural_tag", "format": layout}).decode()
        constraint = Constraint(kind=ConstraintKind.STRUCTURAL_TAG, text=text)
        return self.compiler.guide(self.compiler.compile(constraint), SamplingParams(max_tokens=9))

    def tokens(self, text, *, as_text=False):
        """Delimiters as control tokens, unless they shall be spelled."""
        ids = [] if as_text else self.ids
        found = next((name for name in ids if name in text), None)
        if found is None:
            return list(text.encode())
        before, _, after = text.partition(found)
        return [*self.tokens(before), self.ids[found], *self.tokens(after)]

    def shown(self, token_ids):
        """As `ChoiceText` shows it to the readers."""
        names = {token_id: name for name, token_id in self.ids.items()}
        text = b"".join(
            (MARK + names[token_id]).encode("utf-8", "surrogatepass")
            if token_id in names
            else bytes([token_id])
            for token_id in token_ids
            if token_id != EOS
        )
        return text.decode("utf-8", "surrogatepass")

    def read(self, token_ids, *, reason=FinishReason.STOP):
        reader = CALL_READERS[self.family](set(SCHEMAS), self.controls)
        parts = PartReader(None, reader, is_parallel=True)
        deltas = [parts.read(Delta(text=self.shown(token_ids)))]
        deltas.append(parts.read(Delta(finish_reason=reason)))
        return joined([delta for delta in deltas if delta is not None])


def walked(model, guide, seed, limit=600):
    """Tokens of a random answer, or None for one that does not come to an end."""
    rng, token_ids = np.random.default_rng(seed), list[int]()
    while len(token_ids) < limit:
        ids = np.flatnonzero(allowed(guide.mask(), model.vocabulary.num_rows))
        assert guide.failure is None
        if EOS in ids and rng.random() < 0.6:
            return token_ids
        choices = [token_id for token_id in ids if token_id not in (9, 10, 32, EOS)]
        token_ids.append(int(rng.choice(choices or ids)))
        guide.accept(token_ids[-1])
        assert guide.failure is None
        if guide.is_finished:
            return [token_id for token_id in token_ids if token_id != EOS]
    return None


def check_calls(delta):
    for call in delta.calls:
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])
    return len(delta.calls)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("is_parallel", [True, False])
def test_a_forced_answer_is_calls_and_nothing_else(kind, is_parallel):
    model, counts = Model(kind), []
    for seed in range(12):
        token_ids = walked(model, model.guide("required", is_parallel=is_parallel), seed)
        assert token_ids is not None
        delta = model.read(token_ids)
        assert (delta.text, delta.finish_reason) == ("", "tool_calls"), model.shown(token_ids)
        counts.append(check_calls(delta))
    assert min(counts) == 1
    assert (max(counts) > 1) == is_parallel


def spelled(kind):
    return SPELLED.get(kind) or SPELLED[kind.split()[0]]


@pytest.mark.parametrize("kind", MODELS)
def test_a_free_answer_may_be_text_or_go_over_into_a_call(kind):
    model = Model(kind)
    guide = model.guide("auto")
    guide.accept_all(model.tokens("It is so: {} [1] <b>\n"))
    assert allowed(guide.mask(), model.vocabulary.num_rows)[EOS]
    before = "" if model.family in ("llama3_json", "pythonic") else "So: "
    token_ids = model.tokens(before + spelled(kind))
    guide = model.guide("auto")
    guide.accept_all(token_ids)
    assert guide.failure is None
    assert guide.is_finished or allowed(guide.mask(), model.vocabulary.num_rows)[EOS]
    assert check_calls(model.read(token_ids)) == 1


@pytest.mark.parametrize("kind", MODELS)
def test_a_call_that_began_is_kept_to_its_schema(kind):
    model = Model(kind)
    for wrong in (spelled(kind).replace('"x"', '"z"'), spelled(kind).replace("look", "lock")):
        guide = model.guide("auto")
        guide.accept_all(model.tokens(wrong))
        is_free = model.family in ("llama3_json", "pythonic") and "lock" in wrong
        assert (guide.failure is None) == is_free


@pytest.mark.parametrize("kind", MODELS)
def test_a_delimiter_alone_stays_text(kind):
    model = Model(kind)
    for word in (*DELIMITERS, '{"name": "Bob"}', "[look", "{", "[", "look("):
        told = f"As in {word}, or {word} and so on"
        token_ids = model.tokens(told, as_text=True)
        guide = model.guide("auto")
        guide.accept_all(token_ids)
        assert guide.failure is None, word
        assert allowed(guide.mask(), model.vocabulary.num_rows)[EOS]
        assert model.read(token_ids).text == told


@pytest.mark.parametrize("kind", [kind for kind, names in MODELS.items() if names])
def test_text_that_spells_a_control_token_is_no_call(kind):
    model = Model(kind)
    if model.family == "llama3_json":
        told = f"<|python_tag|>{spelled(kind)}"
    else:
        told = spelled(kind)
    token_ids = model.tokens(told, as_text=True)
    guide = model.guide("auto")
    guide.accept_all(token_ids)
    assert guide.failure is None
    delta = model.read(token_ids)
    assert (delta.text, delta.calls) == (told, [])


def test_one_call_is_the_last_where_there_may_be_no_other():
    for kind in MODELS:
        model = Model(kind)
        guide = model.guide("auto", is_parallel=False)
        guide.accept_all(model.tokens(spelled(kind)))
        assert guide.failure is None
        assert guide.is_finished, kind


def test_what_python_cannot_name_is_refused_where_it_must_be_called():
    odd = {"type": "object", "properties": {"a-b": {"type": "null"}}}
    for tool in (Tool("f", odd, path="here"), Tool("f-g", NOTHING, path="here")):
        with pytest.raises(InvalidRequest, match="cannot name") as refused:
            Model("pythonic").guide("required", tools=[tool])
        assert refused.value.param == "here"
        Model("pythonic").guide("auto", tools=[tool])


def test_python_values_are_read_as_json_first():
    text = '[some(a=null, b=true, c=[1, {"k": 2}]), look(at="a\\"b\\/", far=False)]'
    model = Model("pythonic")
    delta = model.read(list(text.encode()))
    assert [(call.name, json.loads(call.arguments)) for call in delta.calls] == [
        ("some", {"a": None, "b": True, "c": [1, {"k": 2}]}),
        ("look", {"at": 'a"b/', "far": False}),
    ]


def test_a_stray_control_token_is_shown_or_not_as_any_other():
    model = Model("hermes of tokens")
    text = model.shown([*b"a", model.ids["</tool_call>"], *b"b"])
    for shows, told in ((False, "ab"), (True, "a</tool_call>b")):
        reader = CALL_READERS["hermes"](set(SCHEMAS), model.controls)
        parts = PartReader(None, reader, is_parallel=True, shows_marks=shows)
        deltas = [parts.read(Delta(text=text)), parts.read(Delta(finish_reason=FinishReason.STOP))]
        assert joined([delta for delta in deltas if delta is not None]).text == told
