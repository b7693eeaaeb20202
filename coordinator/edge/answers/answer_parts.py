"""The text of an answer to its parts. Owns where reasoning ends, and which family of calls a model writes; pure.

text ─► ReasoningReader ─► reasoning │ text ─► CallReader ─► text │ calls
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TYPE_CHECKING

from coordinator.edge.answers.answer import ReasoningDelta, TextDelta, ToolCallDelta
from coordinator.edge.answers.call_layouts import DELIMITERS
from coordinator.edge.answers.call_readers import (
    MARK,
    HermesReader,
    LlamaReader,
    MistralReader,
    PythonicReader,
)
from coordinator.edge.answers.choice_text import longest_partial
from protocol.finish import FinishReason

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from coordinator.edge.answers.answer import AnswerRequest, Delta, Part
    from coordinator.edge.answers.call_readers import CallReader
    from coordinator.edge.answers.tools import ToolUse
    from coordinator.edge.text.chat_template import ChatTemplate
    from coordinator.edge.text.tokenizer import TextTokenizer

THINK, THOUGHT = "<think>", "</think>"
OFF, AUTO = "off", "auto"
CALL_READERS: dict[str, Callable[[Collection[str], Collection[str]], CallReader]] = {
    "hermes": HermesReader,
    "llama3_json": LlamaReader,
    "mistral": MistralReader,
    "pythonic": PythonicReader,
}
MARKERS = {
    "hermes": ("<tool_call>",),
    "mistral": ("[TOOL_CALLS]",),
    "llama3_json": ("<|python_tag|>", '{"name": function name, "parameters":'),
    "pythonic": ("[func_name1(params_name1=",),
}
"""What a template of a family has in it; the first that is found decides."""
MARKED = re.compile(MARK + "(" + "|".join(map(re.escape, DELIMITERS)) + ")?")
PROMPT_TAIL_TOKENS = 16
USUAL_FAMILY = "hermes"
TOOL_CALL_PARSERS = (AUTO, OFF, *CALL_READERS)
REASONING_PARSERS = (AUTO, OFF, "think")


class ReasoningReader:
    """What stands between the tags at an answer's beginning, or up to the end tag where the prompt has the first."""

    def __init__(self, *, is_within: bool = False) -> None:
        self._buffer = ""
        self._is_within = is_within
        self._is_over = False
        self._has_begun = is_within

    def push(self, text: str) -> tuple[str, str]:
        """More reasoning, and more text after it."""
        if self._is_over:
            return "", self._without_leading_space(text)
        self._buffer += text
        if not self._has_begun and not self._begins():
            return "", self._if_over()
        return self._within()

    def finish(self) -> tuple[str, str]:
        """What was held back."""
        rest = self._take()
        return (rest, "") if self._is_within else ("", rest)

    def _begins(self) -> bool:
        told = self._buffer.lstrip()
        if told.startswith(THINK):
            self._buffer = told.removeprefix(THINK)
            self._has_begun = self._is_within = True
        elif not THINK.startswith(told):
            self._is_over = True
        return self._has_begun

    def _if_over(self) -> str:
        return self._take() if self._is_over else ""

    def _within(self) -> tuple[str, str]:
        before, tag, after = self._buffer.partition(THOUGHT)
        if tag:
            self._buffer, self._is_within, self._is_over = "", False, True
            return before, self._without_leading_space(after)
        kept = len(self._buffer) - longest_partial(self._buffer, THOUGHT)
        said, self._buffer = self._buffer[:kept], self._buffer[kept:]
        return said, ""

    def _without_leading_space(self, text: str) -> str:
        """The lines between the end tag and the answer belong to neither."""
        if self._has_begun:
            text = text.lstrip()
            self._has_begun = not text
        return text

    def _take(self) -> str:
        rest, self._buffer = self._buffer, ""
        return rest


class PartReader:
    """One choice's deltas with their parts. A delta whose text is not certain waits, its tokens too."""

    def __init__(
        self,
        reasoning: ReasoningReader | None,
        calls: CallReader | None,
        *,
        is_parallel: bool,
        shows_marks: bool = False,
    ) -> None:
        self._reasoning = reasoning
        self._calls = calls
        self._is_parallel = is_parallel
        self._shows_marks = shows_marks
        self._held: list[Delta] = []
        self._has_called = False
        self.num_reasoning_tokens = 0

    def read(self, delta: Delta) -> Delta | None:
        """The delta with what is certain, or None while nothing is."""
        parts = self._read(delta.text, is_last=delta.finish_reason is not None)
        if parts and all(isinstance(part, ReasoningDelta) for part in parts):
            self.num_reasoning_tokens += len(delta.token_ids)
        self._held.append(delta)
        if not parts and delta.finish_reason is None:
            return None
        held, self._held = self._held, []
        delta.tokens = [token for each in held for token in each.tokens]
        delta.token_ids = [token_id for each in held for token_id in each.token_ids]
        delta.offsets = [offset for each in held for offset in each.offsets]
        delta.parts = parts
        delta.text = "".join(part.text for part in parts if isinstance(part, TextDelta))
        self._has_called |= any(isinstance(part, ToolCallDelta) for part in parts)
        if self._has_called and delta.finish_reason is FinishReason.STOP:
            delta.finish_reason = FinishReason.TOOL_CALLS
        return delta

    def _read(self, text: str, *, is_last: bool) -> list[Part]:
        thought, said = self._reasoning.push(text) if self._reasoning else ("", text)
        if is_last and self._reasoning:
            more_thought, more = self._reasoning.finish()
            thought, said = thought + more_thought, said + more
        parts: list[Part] = [ReasoningDelta(thought)] if thought else []
        if self._calls is None:
            return self._unmarked([*parts, TextDelta(said)] if said else parts)
        parts += self._calls.push(said)
        if is_last:
            parts += self._calls.finish()
        return self._unmarked([part for part in parts if self._is_wanted(part)])

    def _unmarked(self, parts: list[Part]) -> list[Part]:
        """Control tokens that turned out to be nothing are shown, or not, as any other."""
        plain: list[Part] = []
        for part in parts:
            said = part.arguments if isinstance(part, ToolCallDelta) else part.text
            shown = MARKED.sub(r"\1" if self._shows_marks else "", said) if MARK in said else said
            if isinstance(part, ToolCallDelta):
                plain.append(replace(part, arguments=shown))
            elif shown:
                plain.append(replace(part, text=shown))
        return plain

    def _is_wanted(self, part: Part) -> bool:
        return self._is_parallel or not isinstance(part, ToolCallDelta) or part.position == 0


class Thought(Enum):
    """What a prompt's end says of thinking."""

    NONE = auto()
    BEGUN = auto()
    OVER = auto()


@dataclass(frozen=True, slots=True)
class AnswerFormats:
    """How one model writes what is no text: the family of its calls, and whether it thinks aloud; None for never.

    `marks` are what is shown of its control tokens that belong to either.
    """

    family: str | None = None
    thinks: bool = False
    calls_are_off: bool = False
    marks: Mapping[int, str] = field(default_factory=dict)

    def thought_in(self, tokenizer: TextTokenizer, prompt: Sequence[int]) -> Thought:
        """Whether the prompt itself begins a thought, or ends it."""
        tail = tokenizer.decode(prompt[-PROMPT_TAIL_TOKENS:], skip_special_tokens=False)
        begin, end = tail.rfind(THINK), tail.rfind(THOUGHT)
        if begin == end:
            return Thought.NONE
        return Thought.BEGUN if begin > end else Thought.OVER

    def family_of(self, use: ToolUse) -> str | None:
        """Where nobody knows how a model writes calls it is free to, unless it must call."""
        if self.family is None and use.must_call and not self.calls_are_off:
            return USUAL_FAMILY
        return self.family

    def maker(
        self, asked: AnswerRequest, tokenizer: TextTokenizer, prompt: Sequence[int]
    ) -> Callable[[], PartReader] | None:
        """What makes a reader for each choice of an answer; None where an answer is text alone."""
        names = {tool.name for tool in asked.tools.callable_tools if asked.tools.may_call}
        family = self.family_of(asked.tools) if names else None
        if not asked.has_parts or (family is None and not self.thinks):
            return None
        controls = {mark.removeprefix(MARK) for mark in self.marks.values()}
        is_within = self.thought_in(tokenizer, prompt) is Thought.BEGUN

        def make() -> PartReader:
            reasoning = ReasoningReader(is_within=is_within) if self.thinks else None
            calls = CALL_READERS[family](names, controls) if family is not None else None
            return PartReader(
                reasoning,
                calls,
                is_parallel=asked.tools.is_parallel,
                shows_marks=not asked.skip_special_tokens,
            )

        return make


@dataclass(frozen=True, slots=True)
class Parsers:
    """What an operator says of a model: one of `TOOL_CALL_PARSERS`, and one of `REASONING_PARSERS`. With `tool_prompt`
    tools are told in the system message where the template has no room for them."""

    tools: str = AUTO
    reasoning: str = AUTO
    tool_prompt: bool = False


def formats_of(template: ChatTemplate, tokenizer: TextTokenizer, parsers: Parsers) -> AnswerFormats:
    """What the operator says, else what the template has in it."""
    tools, reasoning = parsers.tools, parsers.reasoning
    found = (
        name for name, told in MARKERS.items() if any(template.mentions(mark) for mark in told)
    )
    family = next(found, None) if tools == AUTO else tools
    thinks = template.mentions(THOUGHT) if reasoning == AUTO else reasoning != OFF
    is_off = family == OFF
    return AnswerFormats(None if is_off else family, thinks, is_off, _marks(tokenizer))


def _marks(tokenizer: TextTokenizer) -> dict[int, str]:
    shown = {name: MARK + name for name in DELIMITERS} | {THINK: THINK, THOUGHT: THOUGHT}
    special = set(tokenizer.special_tokens)
    ids = {name: tokenizer.token_id(name) for name in shown if name in special}
    return {token_id: shown[name] for name, token_id in ids.items() if token_id is not None}
