"""Neutral conversations to the bodies of other servers. Owns what each dialect can say, and names what it cannot.

An answer is always asked for as a stream: only then can it be told whether it came to its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson

from coordinator.edge.answers.answer import NotSayable
from coordinator.edge.answers.tools import ToolChoice, arguments_object
from coordinator.upstreams.settings import BASES, Provider
from protocol.constraints import ConstraintKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.edge.answers.answer import AnswerRequest, SamplingWishes
    from coordinator.edge.text.conversation import Conversation, ToolCall, Turn
    from coordinator.upstreams.settings import DeploymentSettings
    from protocol.constraints import Constraint

    Body = dict[str, Any]

CHAT_FIELDS = ("max_tokens", "max_completion_tokens")
"""What a chat of OpenAI's dialect may call the limit of its answer."""
USUAL_MAX_TOKENS = 4096
"""Anthropic's dialect must be told a number."""
SYSTEM = ("system", "developer")
SCHEMA_NAME = "answer"


def check_neutral(asked: AnswerRequest) -> None:
    """Raise NotSayable: ids of tokens are another model's, and how likely they are only our own workers can prove."""
    wishes = asked.wishes
    told = {
        "logprobs": wishes.logprobs is not None,
        "prompt_logprobs": wishes.prompt_logprobs is not None,
        "logit_bias": bool(wishes.logit_bias),
        "stop_token_ids": bool(wishes.stop_token_ids),
    }
    for name, is_asked in told.items():
        if is_asked:
            raise not_sayable(name, "another server's model")


def not_sayable(name: str, place: str) -> NotSayable:
    """The error that names a field."""
    return NotSayable(f"{name} cannot be asked of {place}", name)


class Asking:
    """What all bodies have in common."""

    dialect = ""

    def __init__(self, asked: AnswerRequest, place: DeploymentSettings) -> None:
        self.asked = asked
        self.wishes: SamplingWishes = asked.wishes
        self.place = place
        self.told: Body = {"model": place.model, "stream": True}

    def body(self) -> Body:
        """All of it. Raises NotSayable."""
        raise NotImplementedError

    def add(self, name: str, value: object) -> None:
        """Where something was said."""
        if value is not None:
            self.told[name] = value

    def leave_out(self, **fields: bool) -> None:
        """What it has no word for: dropped where the operator says so, else refused if it was said."""
        for name, is_said in fields.items():
            if is_said and not self.place.drops_params:
                raise not_sayable(name, f"a server that speaks {self.dialect}")

    def refuse(self, **fields: bool) -> None:
        """What must not be dropped."""
        for name, is_said in fields.items():
            if is_said:
                raise not_sayable(name, f"a server that speaks {self.dialect}")


class OpenAiAsking(Asking):
    """What chats and completions share; `is_wide` is what vLLM's server, and this one, know besides. `salt` is the client's
    tenant's, for a server that keeps prefix caches apart by it."""

    dialect = "OpenAI's dialect"

    def __init__(self, asked: AnswerRequest, place: DeploymentSettings, salt: str = "") -> None:
        super().__init__(asked, place)
        self.salt = salt

    @property
    def is_wide(self) -> bool:
        """Whether it knows vLLM's fields."""
        return self.place.provider is Provider.HOSTED_VLLM

    def add_sampling(self) -> None:
        """Everything about how tokens are chosen, and when they end."""
        asked, wishes = self.asked, self.wishes
        self.told["stream_options"] = {"include_usage": True}
        self.add(self._most_field(), wishes.max_tokens)
        for name in ("temperature", "top_p", "seed"):
            self.add(name, getattr(wishes, name))
        for name in ("presence_penalty", "frequency_penalty"):
            self.add(name, getattr(wishes, name) or None)
        self.add("stop", list(asked.stops) or None)
        self.add("n", asked.choices_per_prompt if asked.choices_per_prompt > 1 else None)
        sampling = {
            "top_k": wishes.top_k,
            "min_p": wishes.min_p,
            "repetition_penalty": wishes.repetition_penalty,
            "min_tokens": wishes.min_tokens or None,
            "ignore_eos": wishes.ignore_eos or None,
            "include_stop_str_in_output": asked.include_stop or None,
            "skip_special_tokens": None if asked.skip_special_tokens else False,
        }
        if not self.is_wide:
            told = {name: value is not None for name, value in sampling.items()}
            self.leave_out(**told, cache_salt=bool(asked.cache_salt))
            return
        for name, value in sampling.items():
            self.add(name, value)
        self.add("cache_salt", self.salt or None)

    def _most_field(self) -> str:
        """As the client calls it, if that is a word of this dialect; new models of OpenAI's own server know one alone."""
        if self.wishes.max_tokens_field in CHAT_FIELDS:
            return self.wishes.max_tokens_field
        is_theirs = self.place.api_base == BASES[Provider.OPENAI]
        return "max_completion_tokens" if is_theirs else "max_tokens"

    def add_form(self) -> None:
        """What the answer must look like."""
        form = self.wishes.constraint
        if form is None:
            return
        if form.kind is ConstraintKind.JSON_OBJECT:
            self.told["response_format"] = {"type": "json_object"}
        elif form.kind is ConstraintKind.JSON_SCHEMA:
            named = {"name": SCHEMA_NAME, "schema": orjson.loads(form.text), "strict": True}
            self.told["response_format"] = {"type": "json_schema", "json_schema": named}
        elif self.is_wide:
            value = orjson.loads(form.text) if form.kind is ConstraintKind.CHOICE else form.text
            self.told["structured_outputs"] = {form.kind.value: value}
        else:
            self.refuse(**{self.wishes.constraint_field or "response_format": True})


class OpenAiChat(OpenAiAsking):
    """POST /chat/completions."""

    def __init__(
        self,
        asked: AnswerRequest,
        conversation: Conversation,
        place: DeploymentSettings,
        salt: str = "",
    ) -> None:
        super().__init__(asked, place, salt)
        self.conversation = conversation

    def body(self) -> Body:
        """See Asking."""
        check_neutral(self.asked)
        self.told["messages"] = [self._message(turn) for turn in self.conversation.turns]
        self.add_sampling()
        self._add_tools()
        self.add_form()
        self._add_rendering()
        return self.told

    def _add_rendering(self) -> None:
        talk = self.conversation
        rendering = {
            "documents": talk.documents,
            "chat_template_kwargs": dict(talk.template_kwargs) or None,
            "continue_final_message": talk.continue_final_turn or None,
        }
        if not self.is_wide:
            self.refuse(**{name: value is not None for name, value in rendering.items()})
            return
        for name, value in rendering.items():
            self.add(name, value)
        if talk.continue_final_turn or not talk.add_generation_prompt:
            self.told["add_generation_prompt"] = False

    def _message(self, turn: Turn) -> Body:
        told: Body = {"role": turn.role, "content": self._content(turn)}
        kept = ("name", "tool_call_id")
        told |= {name: it for name, it in turn.others.items() if self.is_wide or name in kept}
        if turn.calls:
            told["tool_calls"] = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments or "{}"},
                }
                for call_id, call in _with_ids(turn.calls, "call_")
            ]
        if turn.reasoning and self.is_wide:
            told["reasoning_content"] = turn.reasoning
        return told

    @staticmethod
    def _content(turn: Turn) -> str | list[Body] | None:
        if not isinstance(turn.content, str):
            return [{"type": "text", "text": text} for text in turn.content]
        return None if turn.calls and not turn.content else turn.content

    def _add_tools(self) -> None:
        use = self.asked.tools
        if not use.tools:
            return
        self.told["tools"] = [tool.shown for tool in use.tools]
        if use.only is not None:
            self.told["tool_choice"] = {"type": "function", "function": {"name": use.only}}
        elif use.choice is not ToolChoice.AUTO:
            self.told["tool_choice"] = use.choice.value
        if not use.is_parallel:
            self.told["parallel_tool_calls"] = False


class AnthropicMessages(Asking):
    """POST /v1/messages."""

    dialect = "Anthropic's dialect"

    def __init__(
        self, asked: AnswerRequest, conversation: Conversation, place: DeploymentSettings
    ) -> None:
        super().__init__(asked, place)
        self.conversation = conversation

    def body(self) -> Body:
        """See Asking."""
        check_neutral(self.asked)
        asked, wishes, talk = self.asked, self.wishes, self.conversation
        told = self.told
        told["max_tokens"] = wishes.max_tokens or USUAL_MAX_TOKENS
        system = "\n".join(turn.text for turn in talk.turns if turn.role in SYSTEM)
        self.add("system", system or None)
        told["messages"] = _merged([turn for turn in talk.turns if turn.role not in SYSTEM])
        for name in ("temperature", "top_p", "top_k"):
            self.add(name, getattr(wishes, name))
        self.add("stop_sequences", list(asked.stops) or None)
        self._add_tools()
        self._add_form(wishes.constraint)
        self.leave_out(
            seed=wishes.seed is not None,
            min_p=wishes.min_p is not None,
            presence_penalty=bool(wishes.presence_penalty),
            frequency_penalty=bool(wishes.frequency_penalty),
            repetition_penalty=wishes.repetition_penalty is not None,
            min_tokens=bool(wishes.min_tokens),
            ignore_eos=wishes.ignore_eos,
            skip_special_tokens=not asked.skip_special_tokens,
        )
        self.refuse(
            n=asked.choices_per_prompt > 1,
            documents=bool(talk.documents),
            chat_template_kwargs=bool(talk.template_kwargs),
            include_stop_str_in_output=asked.include_stop,
        )
        return told

    def _add_tools(self) -> None:
        use = self.asked.tools
        if not use.tools:
            return
        self.told["tools"] = [
            _some(name=tool.name, description=_description(tool.shown) or None)
            | {"input_schema": dict(tool.parameters) or {"type": "object"}}
            | ({"strict": True} if tool.is_strict else {})
            for tool in use.tools
        ]
        if use.only is not None:
            choice: Body = {"type": "tool", "name": use.only}
        else:
            names = {ToolChoice.REQUIRED: "any", ToolChoice.NONE: "none", ToolChoice.AUTO: "auto"}
            choice = {"type": names[use.choice]}
        if not use.is_parallel and use.choice is not ToolChoice.NONE:
            choice["disable_parallel_tool_use"] = True
        self.told["tool_choice"] = choice

    def _add_form(self, form: Constraint | None) -> None:
        if form is None:
            return
        if form.kind is not ConstraintKind.JSON_SCHEMA:
            self.refuse(**{self.wishes.constraint_field or "response_format": True})
        schema = {"type": "json_schema", "schema": orjson.loads(form.text)}
        self.told["output_config"] = {"format": schema}


def _description(shown: object) -> str:
    function = shown.get("function") if isinstance(shown, dict) else None
    told = function.get("description") if isinstance(function, dict) else None
    return told if isinstance(told, str) else ""


def _some(**fields: object) -> Body:
    return {name: value for name, value in fields.items() if value is not None}


def _merged(turns: Sequence[Turn]) -> list[Body]:
    """Users and assistants take turns there; results of tools are a user's."""
    messages: list[Body] = []
    for turn in turns:
        role = "assistant" if turn.role == "assistant" else "user"
        blocks = _result(turn) if turn.role == "tool" else _blocks(turn)
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        elif blocks:
            messages.append({"role": role, "content": blocks})
    return messages


def _result(turn: Turn) -> list[Body]:
    call_id = turn.others.get("tool_call_id")
    return [{"type": "tool_result", "tool_use_id": call_id or "", "content": turn.text}]


def _blocks(turn: Turn) -> list[Body]:
    said: list[Body] = [{"type": "text", "text": text} for text in turn.texts if text]
    return said + [
        {
            "type": "tool_use",
            "id": call_id,
            "name": call.name,
            "input": arguments_object(call.arguments),
        }
        for call_id, call in _with_ids(turn.calls, "toolu_")
    ]


def _with_ids(calls: Sequence[ToolCall], prefix: str) -> list[tuple[str, ToolCall]]:
    return [(call.call_id or f"{prefix}{index}", call) for index, call in enumerate(calls)]
