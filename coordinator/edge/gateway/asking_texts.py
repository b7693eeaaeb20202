"""Raw prompts to the bodies of other servers: completions, and embeddings. Owns what of them OpenAI's dialect can say; Anthropic's
has neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from coordinator.edge.answers.answer import NotSayable
from coordinator.edge.gateway.asking import Asking, OpenAiAsking, check_neutral
from coordinator.upstreams.settings import Provider

if TYPE_CHECKING:
    from coordinator.edge.answers.answer import AnswerRequest, RawPrompts
    from coordinator.upstreams.settings import DeploymentSettings

    Body = dict[str, Any]


def _texts(asked: AnswerRequest, raw: RawPrompts, place: DeploymentSettings) -> str | list[str]:
    """As a client wrote them. Raises NotSayable for ids, and for a dialect without raw prompts."""
    if place.provider is Provider.ANTHROPIC:
        told = "embeddings" if raw.is_embedded else "a completion of a raw prompt"
        raise NotSayable(
            f"{told} cannot be asked of a server that speaks Anthropic's dialect", "model"
        )
    texts = [prompt for prompt in raw.said if isinstance(prompt, str)]
    if raw.has_ids:
        raise NotSayable("token ids cannot be asked of another server's model", asked.prompt_field)
    return texts[0] if len(texts) == 1 else texts


class OpenAiCompletion(OpenAiAsking):
    """POST /completions."""

    def __init__(
        self, asked: AnswerRequest, raw: RawPrompts, place: DeploymentSettings, salt: str = ""
    ) -> None:
        super().__init__(asked, place, salt)
        self.raw = raw

    def body(self) -> Body:
        """See Asking. How many tokens may come is said always: servers differ in what they take for granted."""
        asked, wishes = self.asked, self.wishes
        self.told["prompt"] = _texts(asked, self.raw, self.place)
        check_neutral(asked)
        self.add_sampling()
        most = asked.default_max_tokens if wishes.max_tokens is None else wishes.max_tokens
        self.told.pop("max_completion_tokens", None)
        self.told["max_tokens"] = most
        self.add_form()
        if not self.raw.add_special_tokens:
            if self.is_wide:
                self.told["add_special_tokens"] = False
            else:
                self.leave_out(add_special_tokens=True)
        return self.told


class OpenAiEmbedding(Asking):
    """POST /embeddings."""

    dialect = "OpenAI's dialect"

    def __init__(self, asked: AnswerRequest, raw: RawPrompts, place: DeploymentSettings) -> None:
        super().__init__(asked, place)
        self.raw = raw

    def body(self) -> Body:
        """See Asking. Numbers are asked for in base64: they come as they are, and short."""
        raw = self.raw
        told: Body = {"model": self.place.model, "input": _texts(self.asked, raw, self.place)}
        told["encoding_format"] = "base64"
        if raw.dimensions is not None:
            told["dimensions"] = raw.dimensions
        if not raw.add_special_tokens:
            if self.place.provider is Provider.HOSTED_VLLM:
                told["add_special_tokens"] = False
            else:
                self.leave_out(add_special_tokens=True)
        return told
