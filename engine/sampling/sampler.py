"""Choosing tokens from logits. Owns the order of penalties, filters and the draw; must not know batches or blocks.

The order is vLLM's: what a grammar forbids, logit bias and minimum length, then penalties, then temperature,
min-p, top-k, top-p. Log-probabilities are of what the grammar leaves. A draw is a function of (logits, seed, position) alone: Philox (Salmon et al., SC 2011) keyed by
the seed with the position as its counter, so neither batch nor worker nor attempt changes a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from engine.grammar.guide import forbid
from protocol.errors import InternalError
from protocol.sampling import SampledToken, SamplingParams, TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Sequence as SequenceOf

    import numpy.typing as npt

    from engine.kv.sequence import Sequence

    FloatArray = npt.NDArray[np.float32]

GREEDY_TEMPERATURE = 1e-5
_MASK_64 = (1 << 64) - 1
_MAX_BIAS = 1e9


def sample(logits: torch.Tensor, sequences: SequenceOf[Sequence]) -> list[SampledToken]:
    """The next token of each sequence from [S, vocab] float32 logits; InternalError if they are not numbers."""
    if not sequences:
        return []
    numbers = logits.numpy()
    best = numbers.argmax(
        axis=-1
    )  # the first of equals, or of what is not a number; torch takes ten times as long
    for row, sequence in enumerate(sequences):
        if sequence.guide is not None and not _stands(numbers[row, best[row]], best[row], sequence):
            forbid_by_grammar(numbers[row], sequence)
            best[row] = numbers[row].argmax()
    if not np.isfinite(np.take_along_axis(numbers, best[:, None], axis=-1)).all():
        raise InternalError("the model computed logits that are not finite numbers")
    greedy: list[int] = best.tolist()
    return [
        SampledToken(token_id=token_id)
        if is_plain_greedy(sequence)
        else _choose(logits[row], token_id, sequence)
        for row, (token_id, sequence) in enumerate(zip(greedy, sequences, strict=True))
    ]


def _stands(value: np.float32, best_id: np.intp, sequence: Sequence) -> bool:
    """Whether the best of all tokens is the answer, and its grammar lets it through: then no mask would change it."""
    guide = sequence.guide
    assert guide is not None, "only an answer within a grammar is asked"
    return bool(np.isfinite(value)) and is_plain_greedy(sequence) and guide.permits(int(best_id))


def forbid_by_grammar(logits: FloatArray, sequence: Sequence) -> None:
    """Nothing but what may come next in the sequence's grammar; writes to `logits` [vocab]. Where nothing may, the
    guide says so: whatever is chosen then is told to nobody."""
    guide = sequence.guide
    assert guide is not None, "only an answer within a grammar is asked"
    bits = guide.mask()
    if guide.failure is None:
        forbid(logits, bits)


def is_plain_greedy(sequence: Sequence) -> bool:
    """Whether the best raw logit is the answer and nothing else is asked for."""
    params = sequence.sampling
    return (
        params.temperature < GREEDY_TEMPERATURE
        and params.logprobs is None
        and not changes_logits(params, sequence)
    )


def changes_logits(params: SamplingParams, sequence: Sequence) -> bool:
    """Whether a bias, a penalty or a minimum length alters the model's own logits."""
    return (
        bool(params.logit_bias)
        or params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
        or sequence.num_output_tokens < params.min_tokens
        or (params.ignore_eos and sequence.guide is not None)
    )


def _choose(raw: torch.Tensor, best_id: int, sequence: Sequence) -> SampledToken:
    params = sequence.sampling
    token_id = best_id
    changes = changes_logits(params, sequence)
    if changes or params.temperature >= GREEDY_TEMPERATURE:
        logits = np.array(raw.numpy(force=True), dtype=np.float32)
        if changes:
            _apply_bias(logits, params, sequence)
            _apply_penalties(logits, params, sequence)
        if np.isfinite(logits.max()):  # else everything is forbidden: the best raw token stands
            uniform = uniform_draw(params.seed, sequence.num_tokens)
            token_id = draw(logits, params, uniform)
    if params.logprobs is None:
        return SampledToken(token_id=token_id)
    return SampledToken(token_id=token_id, logprob=_logprob(raw, token_id, params.logprobs))


def _apply_bias(logits: FloatArray, params: SamplingParams, sequence: Sequence) -> None:
    for token_id, bias in params.logit_bias.items():
        if 0 <= token_id < len(logits):
            logits[token_id] += max(-_MAX_BIAS, min(_MAX_BIAS, bias))
    ends = _forbidden_ends(params, sequence)
    logits[[token_id for token_id in ends if 0 <= token_id < len(logits)]] = -np.inf


def _forbidden_ends(params: SamplingParams, sequence: Sequence) -> tuple[int, ...]:
    """Before the minimum length everything that ends a text. A grammar would take an EOS for its end, so one that is
    to be ignored is not drawn. If nothing else may come the grammar's word counts: see `_choose`."""
    is_short = sequence.num_output_tokens < params.min_tokens
    ends = params.stop_token_ids if is_short else ()
    if is_short and not params.ignore_eos:
        ends += params.eos_token_ids
    if params.ignore_eos and sequence.guide is not None:
        ends += params.eos_token_ids
    return ends


def _apply_penalties(logits: FloatArray, params: SamplingParams, sequence: Sequence) -> None:
    if params.repetition_penalty != 1.0:
        seen = np.unique(np.array(sequence.token_ids, dtype=np.int64))
        values = logits[seen]
        penalty = np.float32(params.repetition_penalty)
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    if params.presence_penalty != 0.0 or params.frequency_penalty != 0.0:
        outputs = np.array(sequence.output_token_ids, dtype=np.int64)
        ids, counts = np.unique(outputs, return_counts=True)
        logits[ids] -= (params.presence_penalty + params.frequency_penalty * counts).astype(
            np.float32
        )


def uniform_draw(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on seed and position only."""
    generator = np.random.Philox(counter=position, key=seed & _MASK_64)
    return float(int(generator.random_raw()) >> 11) * 2.0**-53


def draw(logits: FloatArray, params: SamplingParams, uniform: float) -> int:
    """The token at quantile `uniform` of the filtered distribution, tokens in order of id."""
    if params.temperature < GREEDY_TEMPERATURE:
        return int(logits.argmax())
    scaled = (logits - logits.max()) / np.float32(params.temperature)
    weights = np.exp(scaled)  # the best token has weight 1
    if params.top_k <= 0 and params.top_p >= 1.0 and params.min_p <= 0.0:
        return _at_quantile(weights, uniform)
    kept = np.flatnonzero(weights >= max(params.min_p, np.finfo(np.float32).tiny))
    kept = _keep_top_k(kept, scaled, params.top_k)
    kept = _keep_top_p(kept, weights, params.top_p)
    return int(kept[_at_quantile(weights[kept], uniform)])


def _at_quantile(weights: FloatArray, uniform: float) -> int:
    """First index at which the running share of the weight exceeds `uniform`."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    index = np.searchsorted(cumulative, uniform * cumulative[-1], side="right")
    return int(min(index, np.searchsorted(cumulative, cumulative[-1])))


def _keep_top_k(kept: npt.NDArray[np.intp], scaled: FloatArray, top_k: int) -> npt.NDArray[np.intp]:
    """The `top_k` best of `kept`, and whatever ties with the last of them."""
    if not 0 < top_k < len(kept):
        return kept
    values = scaled[kept]
    threshold = np.partition(values, len(values) - top_k)[len(values) - top_k]
    best: npt.NDArray[np.intp] = kept[values >= threshold]
    return best


def _keep_top_p(
    kept: npt.NDArray[np.intp], weights: FloatArray, top_p: float
) -> npt.NDArray[np.intp]:
    """The fewest of `kept` whose share of the weight reaches `top_p`, at least one."""
    if top_p >= 1.0:
        return kept
    total = weights[kept].sum(dtype=np.float64)
    # all tokens below this together weigh less than 1 - top_p (the best weighs 1): no need to sort them
    kept = kept[weights[kept] >= (1.0 - top_p) / len(weights)]
    order = np.argsort(-weights[kept], kind="stable")
    cumulative = np.cumsum(weights[kept][order], dtype=np.float64)
    count = int(np.searchsorted(cumulative, top_p * total, side="left")) + 1
    return np.sort(kept[order[:count]])


def _logprob(raw: torch.Tensor, token_id: int, num_top: int) -> TokenLogprob:
    """Of the model's own distribution, of what a grammar leaves of it, before penalties and temperature."""
    logprobs = torch.log_softmax(raw, dim=-1)
    top: list[tuple[int, float]] = []
    if num_top > 0:
        values, ids = logprobs.topk(min(num_top, len(logprobs)))
        best = zip(ids.tolist(), values.tolist(), strict=True)
        top = [(best_id, value) for best_id, value in best if value > -np.inf]
    return TokenLogprob(logprob=float(logprobs[token_id]), top=top)
