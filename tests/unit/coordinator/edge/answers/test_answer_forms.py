"""What an answer is kept to: a client's form, tools and thoughts together, tried by the real compiler."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, cast

import pytest

from coordinator.edge.answers.answer import AnswerRequest, SamplingWishes
from coordinator.edge.answers.answer_forms import AnswerForms, arguments_of, without_words
from coordinator.edge.answers.answer_parts import AnswerFormats
from coordinator.edge.answers.grammar_check import GrammarCheck
from coordinator.edge.answers.tools import Tool, ToolChoice, ToolUse
from deploy.processes.grammar_main import refusal
from engine.grammar.compiler import GrammarCompiler
from engine.grammar.vocabulary import GrammarVocabulary
from protocol.constraints import Constraint, ConstraintKind, json_schema
from protocol.errors import InvalidRequest
from protocol.sampling import SamplingParams

if TYPE_CHECKING:
    from coordinator.edge.text.tokenizer import TextTokenizer

pytestmark = pytest.mark.filterwarnings("error")
EOS = 256
SPELLED = [bytes([byte]) for byte in range(256)]
COMPILER = GrammarCompiler(GrammarVocabulary([*SPELLED, b""], (EOS,), {"<end>": EOS}))
AT = {"type": "object", "properties": {"at": {"const": "x"}}, "required": ["at"]}
LOOK = Tool("look", AT, path="tools[0].function.parameters")
ODD = Tool("odd", {"properties": {"a": {"not": {"type": "null"}}}}, path="tools[1].input_schema")
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "x"}}\n</tool_call>'
NUMBER = json_schema({"type": "integer", "minimum": 0, "maximum": 9})


class Compiles:
    worked_s = 0.0

    def __init__(self):
        self.tried = []

    async def refusal(self, constraint):
        self.tried.append(constraint)
        return refusal(COMPILER, constraint)


class Tails:
    """A tokenizer whose prompts end as a test wants it."""

    special_tokens = ()

    def __init__(self, tail=""):
        self.tail = tail

    def decode(self, token_ids, *, skip_special_tokens):
        assert not skip_special_tokens
        return self.tail


def forms(compiles=None, *, tail="", **formats):
    known = AnswerFormats(**({"family": "hermes"} | formats))
    return AnswerForms(
        GrammarCheck(compiles or Compiles()), known, cast("TextTokenizer", Tails(tail))
    )


def asked(*tools, own=None, has_parts=True, **use):
    return AnswerRequest(
        arrival_s=0.0,
        operation="chat",
        reply_id="",
        model="m",
        prompts=[[1]],
        prompt_field="messages",
        wishes=SamplingWishes(constraint=own, constraint_field="response_format"),
        default_max_tokens=9,
        tools=ToolUse(tools, **use),
        has_parts=has_parts,
    )


async def lets_through(forms, request, text):
    kept = await forms.kept(request)
    constraint = kept.wishes.constraint
    guide = COMPILER.guide(COMPILER.compile(constraint), SamplingParams(max_tokens=9))
    guide.accept_all(text.encode())
    guide.mask()
    return guide.failure is None and (guide.is_finished or guide._matcher.may_end())


async def test_without_tools_and_form_anything_goes():
    assert (await forms().kept(asked())).wishes.constraint is None
    use = asked(LOOK, choice=ToolChoice.NONE)
    assert (await forms().kept(use)).wishes.constraint is None


async def test_free_text_may_go_over_into_a_call():
    assert await lets_through(forms(), asked(LOOK), "Well. <tool_call> is a tag")
    assert await lets_through(forms(), asked(LOOK), CALL)
    assert not await lets_through(forms(), asked(LOOK), CALL.replace('"x"', '"y"'))


async def test_beside_a_form_an_answer_is_the_form_or_calls():
    both = asked(LOOK, own=NUMBER)
    assert await lets_through(forms(), both, "7")
    assert await lets_through(forms(), both, CALL)
    assert not await lets_through(forms(), both, "Well")


@pytest.mark.parametrize(
    ("own", "text"),
    [
        (Constraint(kind=ConstraintKind.JSON_OBJECT), "{}"),
        (NUMBER, "7"),
        (Constraint(kind=ConstraintKind.REGEX, text="a+b"), "aab"),
        (Constraint(kind=ConstraintKind.CHOICE, text='["a<b", "é (c)/ \\n"]'), "é (c)/ \n"),
        (Constraint(kind=ConstraintKind.CHOICE, text='["a<b", "c"]'), "a<b"),
        (Constraint(kind=ConstraintKind.GRAMMAR, text="start: /x+/"), "xx"),
        (
            Constraint(
                kind=ConstraintKind.STRUCTURAL_TAG,
                text='{"type":"structural_tag","format":{"type":"const_string","value":"q"}}',
            ),
            "q",
        ),
    ],
)
async def test_every_form_stands_beside_calls_and_behind_thoughts(own, text):
    assert await lets_through(forms(), asked(LOOK, own=own), text)
    assert not await lets_through(forms(), asked(LOOK, own=own), f"{text}#")
    thinking = forms(family=None, thinks=True, tail="<think>\n")
    assert await lets_through(thinking, asked(own=own), f"so <b> it\n</think>\n\n{text}")
    assert not await lets_through(thinking, asked(own=own), f"</think>\n\n{text}#")


async def test_an_answer_that_must_call_does_whatever_else_is_wanted():
    must = asked(LOOK, own=NUMBER, choice=ToolChoice.REQUIRED)
    assert await lets_through(forms(), must, CALL)
    assert await lets_through(forms(), must, f"{CALL}\n{CALL}")
    assert not await lets_through(forms(), must, "7")


async def test_a_named_tool_is_called_once_and_no_other():
    other = Tool("other", {})
    use = asked(LOOK, other, choice=ToolChoice.REQUIRED, only="other")
    call = CALL.replace("look", "other").replace('{"at": "x"}', "{}")
    assert await lets_through(forms(), use, call)
    assert not await lets_through(forms(), use, f"{call}\n{call}")
    assert not await lets_through(forms(), use, CALL)


@pytest.mark.parametrize("family", [None, "hermes"])
async def test_a_model_of_unknown_family_is_made_to_call_in_the_usual_way(family):
    must = asked(LOOK, choice=ToolChoice.REQUIRED)
    assert await lets_through(forms(family=family), must, CALL)


async def test_where_calls_are_not_read_nothing_can_be_made_to_call():
    with pytest.raises(InvalidRequest, match="must call") as refused:
        await forms(family=None, calls_are_off=True).kept(asked(LOOK, choice=ToolChoice.REQUIRED))
    assert refused.value.param == "tool_choice"
    assert (
        await forms(family=None, calls_are_off=True).kept(asked(LOOK))
    ).wishes.constraint is None


async def test_thoughts_come_before_what_must_be():
    must = asked(LOOK, choice=ToolChoice.REQUIRED)
    free, begun = forms(thinks=True), forms(thinks=True, tail="x<think>\n")
    over = forms(thinks=True, tail="<think>\n\n</think>\n\n")
    assert await lets_through(free, must, f"<think>hm <tool_call></think>\n\n{CALL}")
    assert await lets_through(free, must, CALL)
    assert not await lets_through(free, must, f"hm</think>{CALL}")
    assert await lets_through(begun, must, f"hm</think>\n{CALL}")
    assert not await lets_through(begun, must, CALL)
    assert await lets_through(over, must, CALL)
    assert not await lets_through(over, must, f"<think></think>{CALL}")


async def test_a_thought_that_spells_a_call_is_none_where_the_prompt_began_it():
    begun = forms(thinks=True, tail="<think>")
    wrong = CALL.replace('"x"', '"y"')
    assert await lets_through(begun, asked(LOOK), f"{wrong}</think>Well")
    assert not await lets_through(begun, asked(LOOK), f"</think>{wrong}")


async def test_a_completion_has_neither_thoughts_nor_calls():
    kept = await forms(thinks=True).kept(asked(own=NUMBER, has_parts=False))
    assert kept.wishes.constraint is NUMBER


async def test_a_schema_that_is_only_a_hint_and_cannot_be_kept_to_is_left_out():
    compiles = Compiles()
    use, known = asked(LOOK, ODD), forms(compiles)
    call = CALL.replace("look", "odd").replace('"x"', "null")
    assert await lets_through(known, use, call)
    assert not await lets_through(known, use, CALL.replace('"x"', '"y"'))
    assert len(compiles.tried) == len(set(compiles.tried))


@pytest.mark.parametrize("choice", [ToolChoice.AUTO, ToolChoice.REQUIRED])
async def test_a_schema_that_must_be_kept_to_is_refused_by_its_place_and_keyword(choice):
    strict = Tool("odd", ODD.parameters, is_strict=choice is ToolChoice.AUTO, path=ODD.path)
    with pytest.raises(InvalidRequest, match="not") as refused:
        await forms().kept(asked(LOOK, strict, choice=choice))
    assert refused.value.param == ODD.path
    assert str(refused.value).startswith("tools[1].input_schema: ")


async def test_a_form_that_cannot_be_kept_to_is_named_before_the_tools():
    own = json_schema({"uniqueItems": True})
    with pytest.raises(InvalidRequest, match="uniqueItems") as refused:
        await forms().kept(asked(LOOK, own=own))
    assert refused.value.param == "response_format"


async def test_where_nothing_compiles_free_answers_stay_free():
    free = AnswerForms(
        GrammarCheck(None), AnswerFormats(family="hermes"), cast("TextTokenizer", Tails())
    )
    assert (await free.kept(asked(LOOK))).wishes.constraint is None
    with pytest.raises(InvalidRequest, match="must call"):
        await free.kept(asked(LOOK, choice=ToolChoice.REQUIRED))


def test_arguments_are_an_object_and_none_where_no_schema_says_more():
    assert arguments_of(Tool("f"))["additionalProperties"] is False
    assert arguments_of(Tool("f", {"properties": {"a": {}}}))["type"] == "object"
    assert arguments_of(Tool("f", {"type": ["object", "null"]}))["type"] == "object"


def test_words_for_people_do_not_travel_and_names_do():
    schema = {
        "title": "T",
        "description": "D",
        "properties": {
            "title": {"type": "string", "description": "x"},
            "default": {"enum": [{"title": 1}]},
        },
        "required": ["title"],
        "anyOf": [{"description": "y", "const": {"description": "z"}}],
    }
    assert json.loads(json.dumps(without_words(schema))) == {
        "properties": {"title": {"type": "string"}, "default": {"enum": [{"title": 1}]}},
        "required": ["title"],
        "anyOf": [{"const": {"description": "z"}}],
    }
