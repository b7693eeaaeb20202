"""What a chat template can do, found out by rendering. Owns the conversations that it is tried with.

A template is a program: what it does with a role, a list of parts, a tool or a call is seen from what comes out when
their words are marks that stand nowhere else. Every question has several conversations, since templates insist on
an order of roles; one that comes out is enough.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from coordinator.edge.text.control_tokens import ROLES
from coordinator.edge.text.template_abilities import ContentForm, TemplateAbilities

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Message = dict[str, Any]
    Render = Callable[[Mapping[str, Any]], str | None]

FIRST, SECOND, THIRD, KEY = "q7f31x", "q7f32x", "q7f33x", "q7f34x"
STRANGER = "q7f35x"
LONG_ID, SHORT_ID = "call_0123456789abcdef01234567", "abcdef012"
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")
HI, WELL = "Hello there.", "Well."


def described_tool(name: str) -> Message:
    """A tool of this name, with everything that templates look for."""
    city = {"type": "string", "description": "A city."}
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    told = {"name": name, "description": "It tells the weather.", "parameters": parameters}
    return {"type": "function", "function": told}


def described_document(title: str, text: str) -> Message:
    """A document by all the names that templates use."""
    return {"doc_id": "1", "title": title, "text": text, "contents": text}


TOOL, DOCUMENT = described_tool(FIRST), described_document(FIRST, SECOND)


class Calling(NamedTuple):
    """How earlier calls are told."""

    arguments_are_text: bool = False
    calls_have_no_content: bool = False
    short_call_ids: bool = False


def probe(render: Render, variables: frozenset[str]) -> TemplateAbilities:
    """`render` takes what a template reads, and returns None where it refuses; `variables` are what it can read
    besides. A template that shows not even what a user says is taken to be able to do anything."""
    trial = _Trial(render)
    if not trial.user_forms:
        return TemplateAbilities(variables=variables)
    forms = {role: trial.forms_of(role) for role in ("user", "system", "assistant", "developer")}
    calling = trial.calling()
    forms["tool"] = trial.tool_forms(calling or Calling())
    return TemplateAbilities(
        forms={role: forms[role] for role in ROLES if forms[role]},
        tools=trial.shows([trial.user(HI)], FIRST, tools=[TOOL]),
        documents=trial.shows([trial.user(HI)], SECOND, documents=[DOCUMENT]),
        tool_calls=calling is not None,
        reasoning_field=trial.reasoning_field(calling or Calling()),
        drops_thoughts=trial.drops_thoughts(),
        variables=variables,
        **(calling or Calling())._asdict(),
    )


def _in_form(form: ContentForm, *texts: str) -> str | list[Message]:
    if form is ContentForm.TEXT:
        return "\n".join(texts)
    said = texts if form is ContentForm.PARTS else ("\n".join(texts),)
    return [{"type": "text", "text": text} for text in said]


class _Trial:
    """One template's answers; messages that only surround the question have a form that is known to come out."""

    def __init__(self, render: Render) -> None:
        self._render = render
        self.user_forms: frozenset[ContentForm] = frozenset()
        self.user_forms = self.forms_of("user")

    def user(self, text: str) -> Message:
        return self._message("user", text)

    def _message(self, role: str, text: str, **others: object) -> Message:
        form = next((form for form in ContentForm if form in self.user_forms), ContentForm.TEXT)
        return {"role": role, "content": _in_form(form, text), **others}

    def text_of(self, messages: Sequence[Message], **variables: object) -> str:
        """What comes out, "" where the template refuses."""
        context: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": True}
        return self._render(context | {"messages": list(messages)} | variables) or ""

    def shows(self, messages: Sequence[Message], *marks: str, **variables: object) -> bool:
        text = self.text_of(messages, **variables).casefold()
        return all(mark in text for mark in marks)

    def forms_of(self, role: str) -> frozenset[ContentForm]:
        """In which forms words of this role come out; none for a `developer` who is like any stranger."""
        surroundings = self._surroundings(role)
        if role == "developer" and self._is_stranger(role, surroundings):
            return frozenset()
        return frozenset(
            form
            for form in ContentForm
            if any(self._takes(form, role, before, after) for before, after in surroundings)
        )

    def _surroundings(self, role: str) -> list[tuple[list[Message], list[Message]]]:
        """What may stand before and after one message."""
        hello = self.user(HI)
        if role == "user":
            return [([], []), ([self._message("system", WELL)], [])]
        if role == "assistant":
            return [([hello], [hello]), ([hello], [])]
        return [([], [hello])]

    def _is_stranger(
        self, role: str, surroundings: list[tuple[list[Message], list[Message]]]
    ) -> bool:
        for before, after in surroundings:
            own, other = (
                self.text_of([*before, self._message(name, FIRST), *after]).casefold()
                for name in (role, STRANGER)
            )
            if own != other.replace(STRANGER, role):
                return False
        return True

    def _takes(
        self, form: ContentForm, role: str, before: list[Message], after: list[Message]
    ) -> bool:
        """Whether the words come out with no more than punctuation between them: a list that is printed has names."""
        content = _in_form(form, FIRST, SECOND)
        message = {"role": role, "content": content, **self._link(role, SHORT_ID)}
        text = self.text_of([*before, message, *after]).casefold()
        start, end = text.find(FIRST), text.find(SECOND)
        if start < 0 or end < 0:
            return False
        return isinstance(content, str) or not _is_printed(text, start, end)

    @staticmethod
    def _link(role: str, call_id: str) -> Message:
        return {"tool_call_id": call_id, "name": "weather"} if role == "tool" else {}

    def _call_turn(self, calling: Calling, **others: object) -> Message:
        arguments = f'{{"{KEY}": "{SECOND}"}}' if calling.arguments_are_text else {KEY: SECOND}
        call = {
            "id": SHORT_ID if calling.short_call_ids else LONG_ID,
            "type": "function",
            "function": {"name": FIRST, "arguments": arguments},
        }
        content = None if calling.calls_have_no_content else ""
        return {"role": "assistant", "content": content, "tool_calls": [call], **others}

    def _result(self, calling: Calling, text: str) -> Message:
        call_id = SHORT_ID if calling.short_call_ids else LONG_ID
        return self._message("tool", text, **self._link("tool", call_id))

    def calling(self) -> Calling | None:
        """The first way of telling a call that comes out as JSON or in the template's own words; None if none does."""
        for short, empty, as_text in product((False, True), repeat=3):
            calling = Calling(as_text, empty, short)
            turns = [self.user(HI), self._call_turn(calling), self._result(calling, THIRD)]
            for messages, tools in product((turns, turns[:2]), (None, [TOOL])):
                if self._tells_call(messages, tools):
                    return calling
        return None

    def _tells_call(self, messages: list[Message], tools: list[Message] | None) -> bool:
        text = self.text_of(messages, tools=tools)
        folded = text.casefold()
        if SECOND not in folded or folded.count(FIRST) < (2 if tools else 1):
            return False
        if f'\\"{KEY}' in folded or f"'{KEY}'" in folded:
            return False
        nones = self.text_of(messages[:1], tools=tools).count("None")
        return text.count("None") <= nones

    def tool_forms(self, calling: Calling) -> frozenset[ContentForm]:
        """In which forms a tool's result comes out."""
        hello, call = self.user(HI), self._call_turn(calling)
        call_id = call["tool_calls"][0]["id"]
        answer = self._message("assistant", WELL)
        starts = [[hello, call], [hello, answer], [hello]]
        return frozenset(
            form
            for form in ContentForm
            if any(self._takes_result(form, start, call_id) for start in starts)
        )

    def _takes_result(self, form: ContentForm, before: list[Message], call_id: str) -> bool:
        content = _in_form(form, KEY, THIRD)
        message = {"role": "tool", "content": content, **self._link("tool", call_id)}
        for tools in (None, [TOOL]):
            text = self.text_of([*before, message], tools=tools).casefold()
            start, end = text.rfind(KEY), text.find(THIRD)
            if start >= 0 and end >= 0:
                return isinstance(content, str) or not _is_printed(text, start, end)
        return False

    def reasoning_field(self, calling: Calling) -> str | None:
        """What an earlier answer's thoughts are called."""
        hello = self.user(HI)
        for name in REASONING_FIELDS:
            answer = self._message("assistant", WELL, **{name: THIRD})
            call = self._call_turn(calling, **{name: THIRD})
            for messages in (
                [hello, answer],
                [hello, answer, hello],
                [hello, call, self._result(calling, WELL)],
            ):
                if self.shows(messages, THIRD):
                    return name
        return None

    def drops_thoughts(self) -> bool:
        """Whether what an earlier answer thought is left out of its text."""
        hello = self.user(HI)
        answer = self._message("assistant", f"<think>\n{FIRST}\n</think>\n\n{SECOND}")
        text = self.text_of([hello, answer, hello]).casefold()
        return SECOND in text and FIRST not in text


def _is_printed(text: str, start: int, end: int) -> bool:
    """Whether more than white space and punctuation stands between the two marks, or a bracket does."""
    between = text[start + len(FIRST) : end] if start < end else text
    return any(character.isalnum() or character in "{}[]" for character in between)
