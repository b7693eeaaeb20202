"""Conversations and texts to token ids. Owns the way there; long inputs leave the event loop.

conversation ─► rendered text ─► token ids                      nothing in it can be a control token: nearly always
             └► with marks ─► text and the template's tokens ─► token ids    otherwise (`control_tokens.py`)

A text whose bytes alone are too many for the context is refused before it is tokenized.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from coordinator.edge.http.side_work import SideWork
from coordinator.edge.text.control_tokens import MARKS, ControlTokens
from coordinator.edge.text.guarded_tokenizer import CLOSE, OPEN, GuardedTokenizer
from coordinator.edge.text.kept_fields import KeptFields, try_template
from coordinator.edge.text.tool_prompt import told_in_words
from protocol.errors import ContextLengthExceeded, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from coordinator.edge.http.limits import EdgeLimits
    from coordinator.edge.text.chat_template import ChatTemplate
    from coordinator.edge.text.conversation import Conversation
    from coordinator.edge.text.template_abilities import TemplateAbilities
    from coordinator.edge.text.tokenizer import TextTokenizer
    from protocol.clock import Clock

INLINE_TURNS = 32
INLINE_TEXTS = 32
"""So many short texts are tokenized on the loop, or together in a thread."""
LONG_TEXT_CHARACTERS = 128 * 1024
"""Of a longer text it is asked first whether it is far too long: a tokenizer may not tell by the bytes."""
PREPENDED = " \u2581"
"""What some tokenizers put before a text, and before a token that they look for in it."""
CUT, SPACES = "\ufdd2\ufdd3", " \n\t "
"""Where a continued message ends, and white space that is gone behind it if the template trims."""


@dataclass(frozen=True, slots=True)
class Guard:
    """What keeps a message's words from becoming control tokens. Where the tokenizer also finds tokens in text that it has
    normalized, `folded` are these as they look then, and `fold` makes a text look so."""

    tokens: ControlTokens
    tokenizer: GuardedTokenizer
    fold: Callable[[str], str]
    folded: ControlTokens | None = None

    def folds_to_one(self, brought: Sequence[str]) -> bool:
        """Whether these words could become a token when they are normalized: quick, and true too often."""
        if self.folded is None:
            return False
        return self.folded.may_be_in([self.fold(text) for text in brought])


def make_guard(tokenizer: TextTokenizer, template: ChatTemplate, kept: KeptFields) -> Guard:
    """For all special tokens, and for the other added ones that `template` writes. Of the latter an earlier answer may bring
    back those that frame no turn."""
    written = [name for name in tokenizer.loose_tokens if template.mentions(name)]
    own = set(written) - kept.framing(written)
    tokens = ControlTokens([*tokenizer.special_tokens, *written], own)
    template.guard(tokens)
    names = tokenizer.normalized_names & tokens.names
    folded = {tokenizer.normalize(name).strip(PREPENDED) for name in names}
    return Guard(
        tokens,
        tokenizer.guarded(tokens.names),
        tokenizer.normalize,
        ControlTokens(folded) if folded else None,
    )


def make_reader(  # noqa: PLR0913 - a reader, and what an operator says of it
    tokenizer: TextTokenizer,
    template: ChatTemplate,
    limits: EdgeLimits,
    clock: Clock,
    max_model_len: int,
    *,
    side: SideWork | None = None,
    guarded: bool = True,
    tool_prompt: bool = False,
) -> PromptReader:
    """A reader that has tried what `template` can do; unless `guarded`, messages may write control tokens. With
    `tool_prompt` tools are told in words where the template has no room for them."""
    kept = try_template(template, clock, limits)
    guard = make_guard(tokenizer, template, kept) if guarded else None
    tells = tool_prompt and not kept.abilities.tools
    work = side or SideWork()
    return PromptReader(tokenizer, template, kept, limits, clock, work, max_model_len, guard, tells)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Token ids of `text`, which `param` held, by `encode`. Of so many of its characters it is known that they are not far
    too many."""

    encode: Callable[[], list[int]]
    text: str
    param: str
    num_checked: int = 0


@dataclass(frozen=True, slots=True)
class PromptReader:
    """Turns what a client sent into what a worker takes; without a guard, messages may write control tokens."""

    tokenizer: TextTokenizer
    template: ChatTemplate
    kept: KeptFields
    limits: EdgeLimits
    clock: Clock
    side: SideWork
    max_model_len: int
    guard: Guard | None = None
    tells_tools: bool = False

    @property
    def abilities(self) -> TemplateAbilities:
        """What the chat template can do."""
        return self.kept.abilities

    async def turns(self, conversation: Conversation) -> list[int]:
        """As `chat`, for clients that send back what an answer thought, whether a template has room for it or not."""
        if self.abilities.reasoning_field is None:
            conversation = conversation.without_thoughts()
        return await self.chat(conversation)

    async def chat(self, conversation: Conversation) -> list[int]:
        """Token ids of a conversation; the template writes its own special tokens."""
        is_small = _is_small(conversation, self.limits.inline_text_bytes)
        num_checked = 0 if is_small else await self._check_said(conversation)
        text, written = (
            self._read(conversation)
            if is_small
            else await self.side.run(lambda: self._read(conversation))
        )
        special = conversation.add_special_tokens
        if self.guard is None or written is None:
            encode = partial(self.tokenizer.encode, text, add_special_tokens=special)
        else:
            guarded = self.guard.tokenizer
            encode = partial(guarded.encode, text, written, add_special_tokens=special)
        is_small = len(text) <= self.limits.inline_text_bytes
        wanted = Wanted(encode, text, conversation.path, num_checked)
        return await self._encode(wanted, is_small=is_small)

    async def _check_said(self, conversation: Conversation) -> int:
        """Refuse what is far too long before it is rendered, and tell how much of it was looked at: what messages
        say comes out again, but for space around it and what templates leave out of earlier answers."""
        said = "".join(
            text.strip()
            for turn in conversation.turns
            if turn.role != "assistant"
            for text in turn.texts
        )
        self._check_bytes(said, conversation.path)
        if len(said) <= LONG_TEXT_CHARACTERS:
            return 0
        await self.side.tokenize(lambda: self._check_tokens(said, conversation.path))
        return len(said)

    def _check_bytes(self, text: str, param: str) -> None:
        fewest = self.tokenizer.bound.fewest_tokens(text)
        if fewest > self.max_model_len:
            told = f"your {param} has {len(text)} characters: at least {fewest} tokens."
            raise ContextLengthExceeded(self.max_model_len, told, param)

    def _check_tokens(self, text: str, param: str) -> None:
        """Off the loop."""
        if self.tokenizer.is_far_beyond(text, self.max_model_len):
            told = f"your {param} has {len(text)} characters: far more tokens than that."
            raise ContextLengthExceeded(self.max_model_len, told, param)

    def _read(self, conversation: Conversation) -> tuple[str, list[tuple[int, int]] | None]:
        """The rendered text, and where its control tokens stand if not at all places that spell one."""
        if self.tells_tools:
            conversation = told_in_words(conversation, self.abilities)
        self.kept.check(conversation)
        text, guard = self._render(conversation), self.guard
        brought = conversation.brought()
        if guard is None:
            return text, None
        is_folded = guard.folds_to_one(brought)
        if not is_folded and not guard.tokens.may_be_in(brought):
            return text, None
        tokens, everything = guard.tokens, "".join(brought)
        if any(character in everything for character in OPEN + CLOSE) or MARKS.search(everything):
            raise InvalidRequest("messages must not hold U+FDD0, U+FDD1 or surrogates", "messages")
        marked = self._render(conversation, marks=True)
        if tokens.plain(marked) != text:
            self._check_harmless(tokens, text, conversation, everything)
            return text, list(tokens.found(text)) if is_folded else None
        words = {text.strip() for text in brought}
        written = tokens.written(text, marked, words, self._exempt(tokens, conversation))
        return text, list(tokens.found(text)) if is_folded and written is None else written

    def _check_harmless(
        self, tokens: ControlTokens, text: str, conversation: Conversation, everything: str
    ) -> None:
        """Marks change what this template does. Then messages must hold no token, and there must be no more of them
        than with other words."""
        is_spelled = next(tokens.found(everything), None) is not None
        others = self.kept.harmless(conversation)
        if is_spelled or tokens.count_in(text) > tokens.count_in(others):
            message = "the chat template cannot render messages that spell control tokens"
            raise InvalidRequest(message, "messages")

    def _exempt(self, tokens: ControlTokens, conversation: Conversation) -> frozenset[str]:
        """Tokens such as `</think>` that earlier answers bring back, unless others say them too."""
        if not tokens.loose:
            return frozenset()
        answers = [turn for turn in conversation.turns if turn.role == "assistant"]
        others = [turn for turn in conversation.turns if turn.role != "assistant"]
        said = replace(conversation, turns=others).brought()
        answered = [text for turn in answers for text in turn.texts]
        return frozenset(
            name
            for name in tokens.loose
            if any(name in text for text in answered) and not any(name in text for text in said)
        )

    def _render(self, conversation: Conversation, *, marks: bool = False) -> str:
        if not conversation.continue_final_turn:
            return self._rendered(conversation, marks=marks)
        content = conversation.turns[-1].texts[-1]
        words = content.rstrip()
        if words != content:
            text = self._rendered(conversation.ending_with(content + CUT + SPACES), marks=marks)
            if CUT + SPACES in text:
                return text[: text.rfind(CUT)]
        text = self._rendered(conversation.ending_with(words + CUT), marks=marks)
        if CUT not in text:
            message = "continue_final_message needs a last message whose text the template keeps"
            raise InvalidRequest(message, "continue_final_message")
        return text[: text.rfind(CUT)]

    def _rendered(self, conversation: Conversation, *, marks: bool) -> str:
        return self.template.render(
            self.abilities.context(conversation), clock=self.clock, limits=self.limits, marks=marks
        )

    async def text(
        self, text: str, *, add_special_tokens: bool, param: str = "prompt"
    ) -> list[int]:
        """Token ids of plain text, which `param` held; special tokens in it are recognized. Raises
        ContextLengthExceeded for one that cannot fit."""

        encode = partial(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)
        is_small = len(text) <= self.limits.inline_text_bytes
        return await self._encode(Wanted(encode, text, param), is_small=is_small)

    async def texts(
        self, texts: Sequence[str], *, add_special_tokens: bool, param: str = "prompt"
    ) -> list[list[int]]:
        """As `text`, for several prompts, which may be much together where each of them is little: each costs something
        by itself, on the loop as in a thread."""
        encoded = partial(self._encoded_each, special=add_special_tokens, param=param)
        if len(texts) <= INLINE_TEXTS and sum(map(len, texts)) <= self.limits.inline_text_bytes:
            return encoded(texts)
        ids: list[list[int]] = []
        for some in batches(texts, self.limits.inline_text_bytes):
            ids += await self.side.tokenize(partial(encoded, some))
        return ids

    async def _encode(self, wanted: Wanted, *, is_small: bool) -> list[int]:
        self._check_bytes(wanted.text, wanted.param)
        if is_small:
            return wanted.encode()
        return await self.side.tokenize(lambda: self._encoded(wanted))

    def _encoded_each(self, some: Sequence[str], *, special: bool, param: str) -> list[list[int]]:
        ids = []
        for text in some:
            self._check_bytes(text, param)
            encode = partial(self.tokenizer.encode, text, add_special_tokens=special)
            ids.append(self._encoded(Wanted(encode, text, param)))
        return ids

    def _encoded(self, wanted: Wanted) -> list[int]:
        text, param = wanted.text, wanted.param
        if len(text) - wanted.num_checked > LONG_TEXT_CHARACTERS:
            self._check_tokens(text, param)
        return wanted.encode()


def batches(texts: Sequence[str], num_characters: int) -> Iterator[list[str]]:
    """In their order, INLINE_TEXTS together at most, and no more than `num_characters` unless one alone has more."""
    some: list[str] = []
    size = 0
    for text in texts:
        if some and (len(some) == INLINE_TEXTS or size + len(text) > num_characters):
            yield some
            some, size = [], 0
        some.append(text)
        size += len(text)
    if some:
        yield some


def _is_small(conversation: Conversation, limit: int) -> bool:
    """Whether rendering costs the loop nothing: few turns of text alone, and no more of it than `limit`."""
    turns = conversation.turns
    if len(turns) > INLINE_TURNS or conversation.tools or conversation.documents:
        return False
    if any(turn.others or turn.calls for turn in turns):
        return False
    return sum(len(text) for turn in turns for text in (*turn.texts, turn.reasoning)) <= limit
