"""Choosing tokens on the device. Owns one copy of the answers to the host; the definition is engine.sampling.sampler's.

    all greedy            best token of each row, chosen with the logits
    temperature, top-k…   filtered and drawn on the device, all rows at once
    bias, penalties, logprobs: those rows go to the host, to engine.sampling.sampler itself

What a row's grammar forbids is taken away on the device, before all that.

A draw is at the quantile of (seed, position) in order of token id, as on the host: sums run in float64, but an
exponential may differ in its last bit, so a draw that falls between two tokens may fall to the other one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from engine.cuda.decode_graphs import Choices, choices_of
from engine.cuda.sizing import DRAWN_ROWS
from engine.grammar.guide import WORD_BITS
from engine.sampling.sampler import (
    GREEDY_TEMPERATURE,
    changes_logits,
    is_plain_greedy,
    sample,
    uniform_draw,
)
from protocol.errors import InternalError
from protocol.sampling import SampledToken

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    from engine.kv.sequence import Sequence


def _has_failed(sequence: Sequence) -> bool:
    return sequence.guide is not None and sequence.guide.failure is not None


def needs_host(sequence: Sequence) -> bool:
    """Whether the device does not know how to choose for this sequence."""
    params = sequence.sampling
    return params.logprobs is not None or changes_logits(params, sequence)


@dataclass(frozen=True, slots=True)
class Draws:
    """What N rows are drawn by; float64 [N, 1] on the device, `top_k` int64."""

    temperature: torch.Tensor
    uniform: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    filtered: bool

    @classmethod
    def of(cls, sequences: SequenceOf[Sequence], device: torch.device) -> Draws:
        """One upload for all of them."""
        asked = [sequence.sampling for sequence in sequences]
        table = np.array(
            [
                [params.temperature for params in asked],
                [uniform_draw(s.sampling.seed, s.num_tokens) for s in sequences],
                [params.top_k for params in asked],
                [params.top_p for params in asked],
                [params.min_p for params in asked],
            ]
        )
        host = torch.from_numpy(table)
        pinned = host.pin_memory() if device.type == "cuda" else host
        on_device = pinned.to(device, non_blocking=True).unsqueeze(-1)
        filtered = any(p.top_k > 0 or p.top_p < 1.0 or p.min_p > 0.0 for p in asked)
        temperature, uniform, top_k, top_p, min_p = on_device.unbind(0)
        return cls(temperature, uniform, top_k.to(torch.int64), top_p, min_p, filtered)


def draw_rows(logits: torch.Tensor, draws: Draws) -> torch.Tensor:
    """[N] int64: for each row of [N, vocab] float32 logits the token at its quantile, of what the filters keep."""
    best = logits.max(dim=-1, keepdim=True).values
    scaled = (logits - best) / draws.temperature.float()
    weights = torch.exp(scaled)  # the best token has weight 1
    if draws.filtered:
        weights = torch.where(_kept(scaled, weights, draws), weights, 0.0)
    cumulative = torch.cumsum(weights, dim=-1, dtype=torch.float64)
    whole = cumulative[:, -1:].contiguous()
    found = torch.searchsorted(cumulative, draws.uniform * whole, right=True)
    last = torch.searchsorted(cumulative, whole)
    return torch.minimum(found, last).squeeze(-1)


def _kept(scaled: torch.Tensor, weights: torch.Tensor, draws: Draws) -> torch.Tensor:
    """[N, vocab] bool: what min-p, then top-k with its ties, then top-p leave."""
    tiny = torch.finfo(torch.float32).tiny
    kept = weights >= draws.min_p.float().clamp(min=tiny)
    ranked, order = torch.where(kept, scaled, float("-inf")).sort(
        dim=-1, descending=True, stable=True
    )
    limit = torch.where(draws.top_k > 0, draws.top_k, ranked.shape[1]).clamp(max=ranked.shape[1])
    threshold = ranked.gather(-1, limit - 1)
    in_top_k = (ranked >= threshold) & (ranked > float("-inf"))
    ranked_weights = torch.where(in_top_k, weights.gather(-1, order), 0.0)
    cumulative = torch.cumsum(ranked_weights, dim=-1, dtype=torch.float64)
    before = cumulative - ranked_weights
    in_top_p = (draws.top_p >= 1.0) | (before < draws.top_p * cumulative[:, -1:])
    return torch.zeros_like(kept).scatter_(-1, order, in_top_k & in_top_p)


def keep_allowed(choices: Choices, rows: torch.Tensor, bits: torch.Tensor) -> Choices:
    """The choices with `rows` limited to the tokens that `bits` [rows, words] int32 names; writes to the logits."""
    shifts = torch.arange(WORD_BITS, dtype=torch.int32, device=bits.device)
    named = ((bits.unsqueeze(-1) >> shifts) & 1).flatten(1)[:, : choices.logits.shape[1]] != 0
    kept = torch.where(named, choices.logits[rows], float("-inf"))
    choices.logits.index_copy_(0, rows, kept)
    greedy = choices.greedy.index_copy(1, rows, choices_of(kept).greedy)
    return Choices(choices.logits, greedy)


class DeviceSampler:
    """Answers of one step after another; the copy to the host is the step's one synchronization."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._device = device
        self._answers = torch.empty(2, 64, dtype=torch.int64, pin_memory=self._is_cuda)
        self._done: Any = torch.cuda.Event() if self._is_cuda else None  # type: ignore[no-untyped-call]

    def choose(self, choices: Choices, sequences: SequenceOf[Sequence]) -> list[SampledToken]:
        """The next token of each sequence, whose rows are `choices`; InternalError if logits are not numbers.

        Waits for everything that was started on the stream before."""
        choices = self._within_grammars(choices, sequences)
        answers = choices.greedy
        drawn = [
            row
            for row, sequence in enumerate(sequences)
            if sequence.sampling.temperature >= GREEDY_TEMPERATURE and not needs_host(sequence)
        ]
        if drawn:
            answers = answers.clone()
            for start in range(0, len(drawn), DRAWN_ROWS):
                rows = drawn[start : start + DRAWN_ROWS]
                places = self._rows(rows)
                draws = Draws.of([sequences[row] for row in rows], self._device)
                answers[0, places] = draw_rows(choices.logits[places], draws)
        tokens, finite = self._fetch(answers)
        if not all(finite):
            raise InternalError("the model computed logits that are not finite numbers")
        chosen = [SampledToken(token_id=token_id) for token_id in tokens]
        self._choose_on_host(choices.logits, sequences, chosen)
        return chosen

    def _within_grammars(self, choices: Choices, sequences: SequenceOf[Sequence]) -> Choices:
        """Made on the host while the device computes the logits."""
        masks = {
            row: sequence.guide.mask()
            for row, sequence in enumerate(sequences)
            if sequence.guide is not None
        }
        rows = [row for row in masks if not _has_failed(sequences[row])]
        for start in range(0, len(rows), DRAWN_ROWS):
            some = rows[start : start + DRAWN_ROWS]
            bits = self._upload(torch.from_numpy(np.stack([masks[row] for row in some])))
            choices = keep_allowed(choices, self._rows(some), bits)
        return choices

    def _rows(self, rows: list[int]) -> torch.Tensor:
        return self._upload(torch.tensor(rows))

    def _upload(self, host: torch.Tensor) -> torch.Tensor:
        pinned = host.pin_memory() if self._is_cuda else host
        return pinned.to(self._device, non_blocking=True)

    def _fetch(self, answers: torch.Tensor) -> tuple[list[int], list[int]]:
        count = answers.shape[1]
        if count > self._answers.shape[1]:
            self._answers = torch.empty(2, 2 * count, dtype=torch.int64, pin_memory=self._is_cuda)
        target = self._answers.view(-1)[: 2 * count].view(2, count)
        target.copy_(answers, non_blocking=True)
        if self._done is not None:
            self._done.record()
            self._done.synchronize()
        tokens, finite = target.tolist()
        return tokens, finite

    def _choose_on_host(
        self,
        logits: torch.Tensor,
        sequences: SequenceOf[Sequence],
        chosen: list[SampledToken],
    ) -> None:
        rows = [
            row
            for row, sequence in enumerate(sequences)
            if needs_host(sequence) and not is_plain_greedy(sequence)
        ]
        if not rows:
            return
        found = sample(logits[self._rows(rows)].cpu(), [sequences[row] for row in rows])
        for row, token in zip(rows, found, strict=True):
            chosen[row] = token
