"""That a chat template drops nothing of a conversation. Owns the trial that shows it, and who hears what would vanish.

A template may leave a message out for its role, its place or its company (a system message in the middle, words beside
a tool call), and nobody would notice. So a conversation of every shape is first rendered with marks instead of
words: a mark that does not come out is refused by the name of its field. What was found is kept for the next
conversation of the shape.

What templates leave out on purpose is left to them: ids of calls, a tool's name beside its result, thoughts of earlier
answers where the template has a place for thoughts.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from coordinator.edge.text.control_tokens import ROLES
from coordinator.edge.text.conversation import Conversation, ToolCall, Turn
from coordinator.edge.text.template_meter import TemplateTooLarge, TemplateTooSlow
from coordinator.edge.text.template_probe import (
    HI,
    SHORT_ID,
    WELL,
    described_document,
    described_tool,
    probe,
)
from protocol.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from coordinator.edge.http.limits import EdgeLimits
    from coordinator.edge.text.chat_template import ChatTemplate
    from coordinator.edge.text.template_abilities import TemplateAbilities
    from protocol.clock import Clock

MAX_SHAPES = 1024
MAX_REMEMBERED_TURNS = 128
PLACES = frozenset({"name", "tool_call_id"})
UNKNOWN_FIELD = "unsupported_parameter"


@dataclass(frozen=True, slots=True)
class Vanished:
    """What a template does not show; turn and text are places in the conversation, None for what is beside them."""

    field: str
    turn: int | None = None
    text: int | None = None


def try_template(template: ChatTemplate, clock: Clock, limits: EdgeLimits) -> KeptFields:
    """Find out what `template` can do. ConfigError for one that does not end, or takes a short conversation for more
    than a long one may become."""

    def render(context: Mapping[str, Any]) -> str:
        return template.render(context, clock=clock, limits=limits)

    def tried(context: Mapping[str, Any]) -> str | None:
        try:
            return render(context)
        except TemplateTooSlow as error:
            most_s = limits.template_deadline_s
            raise ConfigError(f"the chat template takes longer than {most_s:g} s") from error
        except TemplateTooLarge as error:
            raise ConfigError(f"{error}: of a short conversation") from error
        except InvalidRequest:
            return None

    return KeptFields(probe(tried, template.variables()), render)


class KeptFields:
    """One template's check; `render` raises InvalidRequest where the template refuses."""

    def __init__(
        self, abilities: TemplateAbilities, render: Callable[[Mapping[str, Any]], str]
    ) -> None:
        self.abilities = abilities
        self._render = render
        self._known: dict[object, Vanished | None] = {}

    def check(self, conversation: Conversation) -> None:
        """Raise InvalidRequest for the first thing that the template would drop."""
        self._check_variables(conversation)
        key = _shape_of(conversation)
        if key is not None and key in self._known:
            vanished = self._known[key]
        else:
            vanished = self._try(conversation)
            if key is not None:
                if len(self._known) >= MAX_SHAPES:
                    self._known.clear()
                self._known[key] = vanished
        if vanished is not None:
            raise self._refusal(vanished, conversation)

    def harmless(self, conversation: Conversation) -> str:
        """What the template makes of the same conversation with marks for words."""
        marked = _Marker(self.abilities).conversation(conversation)
        return self._render(self.abilities.context(marked))

    def framing(self, names: Collection[str]) -> frozenset[str]:
        """Those of `names` that begin or end a turn: of a user, of a tool, or of the assistant where a prompt ends with it.
        No answer has them in its text."""
        user, answer = Turn("user", HI), Turn("assistant", WELL)
        call = Turn("assistant", calls=[ToolCall("weather", '{"city": "x"}', SHORT_ID)])
        result = Turn("tool", WELL, {"tool_call_id": SHORT_ID, "name": "weather"})

        def more(after: list[Turn], before: list[Turn], *, is_prompt: bool = False) -> set[str]:
            text, less = self._tried(after, is_prompt=is_prompt), self._tried(before)
            return {name for name in names if text.count(name) > less.count(name)}

        users = more([user, answer, user], [user, answer])
        answers = more([user, answer, user, answer], [user, answer])
        prompt = more([user], [user], is_prompt=True)
        results = more([user, call, result], [user, call])
        return frozenset(users | results | (answers & prompt))

    def _tried(self, turns: list[Turn], *, is_prompt: bool = False) -> str:
        """What comes out, "" where the template refuses."""
        asked = Conversation(turns=turns, add_generation_prompt=is_prompt)
        try:
            return self._render(self.abilities.context(asked))
        except InvalidRequest:
            return ""

    def _check_variables(self, conversation: Conversation) -> None:
        """A variable that says no, or nothing, may be set for every template."""
        for name, value in conversation.template_kwargs.items():
            if name not in self.abilities.variables and value not in (None, False):
                path = f"chat_template_kwargs.{name}"
                raise InvalidRequest(f"{path} is not read by this model's chat template", path)

    def _try(self, conversation: Conversation) -> Vanished | None:
        marker = _Marker(self.abilities)
        marked = marker.conversation(conversation)
        try:
            text = self._render(self.abilities.context(marked)).casefold()
        except InvalidRequest:
            return self._refused_role(conversation)
        return next((told for mark, told in marker.marks.items() if mark not in text), None)

    def _refused_role(self, conversation: Conversation) -> Vanished | None:
        """The template refuses: for a role if it never takes it; otherwise it says why when it is asked in earnest."""
        for index, turn in enumerate(conversation.turns):
            role = self.abilities.role_of(turn.role)
            if role in ROLES and role not in self.abilities.forms:
                return Vanished("role", index)
        return None

    def _refusal(self, vanished: Vanished, conversation: Conversation) -> InvalidRequest:
        index = vanished.turn
        if index is None:
            told = f"{vanished.field} would be lost: this model's chat template does not show them"
            return InvalidRequest(told, vanished.field, UNKNOWN_FIELD)
        path, role = conversation.path_of(index), conversation.turns[index].role
        known = self.abilities.role_of(role)
        if vanished.field == "role" or (
            vanished.field == "content" and known not in self.abilities.forms
        ):
            told = f"this model's chat template shows no messages of role {role!r}"
            return InvalidRequest(f"{path}.role: {told}", f"{path}.role")
        place = "" if vanished.text is None else f"[{vanished.text}]"
        field = f"{path}.{vanished.field}{place}"
        told = f"this model's chat template does not show it in a message of role {role!r} at this place"
        return InvalidRequest(f"{field} would be lost: {told}", field)


def _shape_of(conversation: Conversation) -> object:
    """Equal for conversations that a template treats alike; None for those that are too odd to remember."""
    turns = conversation.turns
    if len(turns) > MAX_REMEMBERED_TURNS:
        return None
    shapes = []
    for turn in turns:
        if turn.others.keys() - PLACES:
            return None
        filled = tuple(bool(text.strip()) for text in turn.texts)
        is_text = isinstance(turn.content, str)
        calls = tuple(call.arguments in ("", "{}") for call in turn.calls)
        shapes.append(
            (turn.role, is_text, filled, calls, bool(turn.reasoning), *sorted(turn.others))
        )
    kwargs = conversation.template_kwargs
    if any(isinstance(value, str | list | dict) for value in kwargs.values()):
        return None
    return (
        tuple(shapes),
        bool(conversation.tools),
        bool(conversation.documents),
        tuple(sorted(kwargs.items())),
        tuple(sorted(conversation.template_hints.items())),
        conversation.add_generation_prompt,
        conversation.continue_final_turn,
    )


class _Marker:
    """Puts marks in the place of words; `marks` says what each stands for."""

    def __init__(self, abilities: TemplateAbilities) -> None:
        self.marks: dict[str, Vanished] = {}
        self._abilities = abilities
        self._ids: dict[str, str] = {}

    def _mark(self, field: str, turn: int | None = None, text: int | None = None) -> str:
        name = f"q7f{len(self.marks):05}x"
        self.marks[name] = Vanished(field, turn, text)
        return name

    def conversation(self, asked: Conversation) -> Conversation:
        """The same with marks for words."""
        tools = documents = None
        if asked.tools:
            tools = [described_tool(self._mark("tools"))]
        if asked.documents:
            documents = [described_document("A title.", self._mark("documents"))]
        turns = [self._turn(turn, index) for index, turn in enumerate(asked.turns)]
        return replace(asked, turns=turns, tools=tools, documents=documents)

    def _turn(self, turn: Turn, index: int) -> Turn:
        others = dict(turn.others)
        if "tool_call_id" in others:
            others["tool_call_id"] = self._id_of(others["tool_call_id"])
        if "name" in others:
            others["name"] = "weather" if turn.role == "tool" else self._mark("name", index)
        return Turn(
            turn.role,
            self._content(turn, index),
            others,
            [self._call(call, index) for call in turn.calls],
            self._reasoning(turn, index),
        )

    def _content(self, turn: Turn, index: int) -> str | tuple[str, ...]:
        if isinstance(turn.content, str):
            return self._mark("content", index) if turn.content.strip() else turn.content
        return tuple(
            self._mark("content", index, place) if text.strip() else text
            for place, text in enumerate(turn.content)
        )

    def _call(self, call: ToolCall, index: int) -> ToolCall:
        name, arguments = self._mark("tool_calls", index), "{}"
        if call.arguments not in ("", "{}"):
            arguments = f'{{"city": "{self._mark("tool_calls", index)}"}}'
        return ToolCall(name, arguments, self._id_of(call.call_id) if call.call_id else "")

    def _reasoning(self, turn: Turn, index: int) -> str:
        if not turn.reasoning:
            return ""
        abilities = self._abilities
        if abilities.reasoning_field is not None or abilities.drops_thoughts:
            return "A thought."
        return self._mark("reasoning_content", index)

    def _id_of(self, call_id: object) -> str:
        return self._ids.setdefault(str(call_id), f"call{len(self._ids):05}")
