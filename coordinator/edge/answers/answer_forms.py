"""What the tokens of an answer are kept to. Owns how a client's form, its tools and a model's thoughts become one constraint.

    tools        form      constraint
    none, off    any       the form
    auto         none      text that may go over into calls
    auto         any       calls, or the form
    required     any       calls

A model that thinks may think first: what its thoughts say is nobody's form.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson

from coordinator.edge.answers.answer_parts import THINK, THOUGHT, USUAL_FAMILY, Thought
from coordinator.edge.answers.call_layouts import (
    ANY_ARGUMENTS,
    DELIMITERS,
    FAMILIES,
    NO_ARGUMENTS,
    Calls,
    in_order,
    one_of,
    regex,
    repeated,
    schema,
    text,
    until,
)
from coordinator.edge.http.field_errors import UNSUPPORTED_CODE
from protocol.constraints import Constraint, ConstraintKind, json_schema
from protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.edge.answers.answer import AnswerRequest
    from coordinator.edge.answers.answer_parts import AnswerFormats
    from coordinator.edge.answers.grammar_check import GrammarCheck
    from coordinator.edge.answers.tools import Tool, ToolUse
    from coordinator.edge.text.tokenizer import TextTokenizer

    Layout = dict[str, Any]

SEARCH_S = 1.0
"""How long it is looked for which of the tools a grammar cannot have; the others then take any arguments."""
WORDS = frozenset(
    (
        "title",
        "description",
        "examples",
        "default",
        "$comment",
        "deprecated",
        "readOnly",
        "writeOnly",
    )
)
NAMED = frozenset(
    ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies")
)
VALUES = frozenset(("enum", "const", "required", "type"))


@dataclass(frozen=True, slots=True)
class AnswerForms:
    """Of one model."""

    grammars: GrammarCheck
    formats: AnswerFormats
    tokenizer: TextTokenizer

    def of(self, tenant: str) -> AnswerForms:
        """The same for what a tenant asks."""
        return replace(self, grammars=self.grammars.of(tenant))

    async def kept(self, asked: AnswerRequest) -> AnswerRequest:
        """The same with what its answers are to be kept to. Raises InvalidRequest that names what cannot be."""
        wishes, use = asked.wishes, asked.tools
        await self.grammars.check(wishes.constraint, wishes.constraint_field)
        if use.must_call:
            self._check_can_call()
        calls = use.may_call and self.grammars.can_compile and self.formats.family is not None
        if not (asked.has_parts and (calls or use.must_call)):
            constraint = self._thoughtful(wishes.constraint, asked)
        else:
            constraint = await self._with_calls(asked)
        return replace(asked, wishes=replace(wishes, constraint=constraint))

    def _check_can_call(self) -> None:
        if not self.grammars.can_compile or self.formats.calls_are_off:
            message = "an answer that must call a tool is not supported by this server"
            raise InvalidRequest(message, "tool_choice", UNSUPPORTED_CODE)

    def _thoughtful(self, own: Constraint | None, asked: AnswerRequest) -> Constraint | None:
        """A client's form, behind what the model thinks."""
        if own is None or not (asked.has_parts and self.formats.thinks):
            return own
        if self._thought(asked) is Thought.OVER:
            return own
        return _tagged(self._after_thoughts(_layout_of(own), asked))

    def _thought(self, asked: AnswerRequest) -> Thought:
        return self.formats.thought_in(self.tokenizer, asked.prompts[0])

    def _after_thoughts(
        self, layout: Layout, asked: AnswerRequest, *, free: bool = False
    ) -> Layout:
        """`free` text may hold thoughts anyway."""
        if not self.formats.thinks:
            return layout
        is_control = THOUGHT in self.tokenizer.special_tokens
        end = until(control=THOUGHT) if is_control else until(re.escape(THOUGHT))
        thought = self._thought(asked)
        if thought is Thought.BEGUN:
            return in_order(end, layout) if free else in_order(end, regex(r"\s{0,4}"), layout)
        if free or thought is Thought.OVER:
            return layout
        return in_order(
            repeated(in_order(text(THINK), end, regex(r"\s{0,4}")), 0, 1),
            layout,
        )

    async def _with_calls(self, asked: AnswerRequest) -> Constraint | None:
        use, own = asked.tools, asked.wishes.constraint
        tools, arguments = use.callable_tools, [arguments_of(tool) for tool in use.callable_tools]
        constraint = self._calling(asked, tools, arguments)
        if await self.grammars.refusal(constraint) is None:
            return constraint
        arguments = await self._honoured(use, tools, arguments)
        constraint = self._calling(asked, tools, arguments)
        refusal = await self.grammars.refusal(constraint)
        if refusal is None:
            return constraint
        if own is not None or use.must_call or any(tool.is_strict for tool in tools):
            raise InvalidRequest(f"tools: {refusal}", "tools")
        return None

    async def _honoured(
        self, use: ToolUse, tools: Sequence[Tool], arguments: Sequence[Layout]
    ) -> list[Layout]:
        """Each tool's schema, or any arguments where it is a hint only and no grammar can have it. Raises InvalidRequest
        for one that must be kept to."""
        until_s = asyncio.get_running_loop().time() + SEARCH_S
        honoured: list[Layout] = []
        for tool, told in zip(tools, arguments, strict=True):
            must = use.must_call or tool.is_strict
            late = asyncio.get_running_loop().time() > until_s
            refusal = None if late and not must else await self.grammars.refusal(json_schema(told))
            if refusal is not None and must:
                raise InvalidRequest(f"{tool.path}: {refusal}", tool.path)
            honoured.append(ANY_ARGUMENTS if late or refusal is not None else told)
        return honoured

    def _calling(
        self, asked: AnswerRequest, tools: Sequence[Tool], arguments: Sequence[Layout]
    ) -> Constraint:
        own, use = asked.wishes.constraint, asked.tools
        special = self.tokenizer.special_tokens
        controls = [name for name in DELIMITERS if name in special]
        is_parallel = use.is_parallel and use.only is None
        calls = Calls(tools, arguments, is_parallel=is_parallel, controls=controls)
        family = FAMILIES[self.formats.family_of(use) or USUAL_FAMILY]()
        if use.must_call:
            return _tagged(self._after_thoughts(family.required(calls), asked))
        if own is None:
            return _tagged(self._after_thoughts(family.auto(calls), asked, free=True))
        either = one_of([family.required(calls), _layout_of(own)])
        return _tagged(self._after_thoughts(either, asked))


def arguments_of(tool: Tool) -> Layout:
    """The schema of its arguments, which are an object; without one it takes none."""
    told = without_words(dict(tool.parameters))
    if not told:
        return NO_ARGUMENTS
    return told if told.get("type") == "object" else {**told, "type": "object"}


def without_words(value: Any, *, is_schema: bool = True) -> Any:
    """A schema without what only people read: a constraint travels in every order."""
    if isinstance(value, list):
        return [without_words(item) for item in value]
    if not isinstance(value, dict):
        return value
    if not is_schema:
        return {name: without_words(item) for name, item in value.items()}
    return {
        name: item if name in VALUES else without_words(item, is_schema=name not in NAMED)
        for name, item in value.items()
        if name not in WORDS
    }


def _tagged(layout: Layout) -> Constraint:
    told = orjson.dumps({"type": "structural_tag", "format": layout}).decode()
    return Constraint(kind=ConstraintKind.STRUCTURAL_TAG, text=told)


def _layout_of(own: Constraint) -> Layout:
    """A client's form as a piece of another."""
    match own.kind:
        case ConstraintKind.JSON_OBJECT:
            return schema(ANY_ARGUMENTS)
        case ConstraintKind.JSON_SCHEMA:
            return schema(orjson.loads(own.text))
        case ConstraintKind.REGEX:
            return regex(own.text)
        case ConstraintKind.CHOICE:
            return one_of([regex(re.escape(choice)) for choice in orjson.loads(own.text)])
        case ConstraintKind.GRAMMAR:
            return {"type": "grammar", "grammar": own.text}
        case ConstraintKind.STRUCTURAL_TAG:
            told = orjson.loads(own.text)
            if isinstance(told, dict) and isinstance(told.get("format"), dict):
                return dict(told["format"])
    message = (
        "this form cannot stand beside tools or thoughts: give it as a structural_tag with a format"
    )
    raise InvalidRequest(message, "response_format")
