"""How likely a prompt was, as OpenAI's clients and vLLM's read it. Owns both spellings, made piece by piece as the scores come.

    logprobs with echo   parallel lists, the first token's entry null     (completions)
    prompt_logprobs      a list: null, then an object by token id a token  (both endpoints)

Pieces are spelled at once, so that a long prompt's answer costs the loop no long moment, and its numbers little memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import Raw

from coordinator.edge.apis.openai.dialects.replies import (
    LOWEST_LOGPROB,
    CompletionLogprobs,
    by_text,
    encode,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from coordinator.edge.text.tokenizer import TextTokenizer
    from protocol.sampling import ScoredToken


class SpelledScores:
    """Of one prompt. `echo_top` and `told_top` are how many alternatives each spelling has, None where it is not asked for;
    `text` is what the client is shown of the prompt, into which offsets point."""

    def __init__(
        self,
        token_ids: Sequence[int],
        tokenizer: TextTokenizer,
        text: str,
        echo_top: int | None,
        told_top: int | None,
    ) -> None:
        self._token_ids = token_ids
        self._tokenizer = tokenizer
        self._echo_top = echo_top
        self._told_top = told_top
        self._detokenizer = tokenizer.detokenizer(skip_special_tokens=False)
        self._unseen = unseen_characters(token_ids, tokenizer, text)
        self._position = 0
        self.echoed = None if echo_top is None else CompletionLogprobs([], [], [], [])
        self.told: list[Raw | None] | None = None if told_top is None else [None]
        self._echo(None)

    def take(self, scores: Sequence[ScoredToken]) -> None:
        """Those of the next tokens."""
        for score in scores:
            self._position += 1
            self._echo(score)
            if self.told is not None:
                self.told.append(self._by_id(score))

    def _echo(self, score: ScoredToken | None) -> None:
        if self.echoed is None:
            return
        token_id = self._token_ids[self._position]
        text = self._tokenizer.token_text(token_id)
        self._detokenizer.push(token_id)
        offset = max(self._detokenizer.offset - self._unseen, 0)
        self.echoed.text_offset.append(offset)
        self.echoed.tokens.append(text)
        if score is None:
            self.echoed.token_logprobs.append(None)
            self.echoed.top_logprobs.append(None)
            return
        logprob = max(score.logprob, LOWEST_LOGPROB)
        top = score.top[: self._echo_top]
        spelled = by_text(text, logprob, top, self._tokenizer)
        self.echoed.token_logprobs.append(logprob)
        self.echoed.top_logprobs.append(Raw(encode(spelled)))

    def _by_id(self, score: ScoredToken) -> Raw:
        own_id = self._token_ids[self._position]
        entries = [(own_id, score.logprob, score.rank)]
        best = enumerate(score.top[: self._told_top], start=1)
        entries += [(it, value, rank) for rank, (it, value) in best if it != own_id]
        return Raw(
            encode(
                {
                    str(token_id): {
                        "logprob": max(logprob, LOWEST_LOGPROB),
                        "rank": rank,
                        "decoded_token": self._tokenizer.token_text(token_id),
                    }
                    for token_id, logprob, rank in entries
                }
            )
        )


def unseen_characters(token_ids: Sequence[int], tokenizer: TextTokenizer, text: str) -> int:
    """Of the tokens before a text that the client did not write."""
    unseen = 0
    for token_id in token_ids:
        said = tokenizer.token_text(token_id)
        if token_id not in tokenizer.special_ids or text.startswith(said):
            break
        unseen += len(said)
    return unseen
