"""The running softmax that both attention kernels keep (Milakov and Gimelshein, arXiv 1805.02867), in powers of two."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def fold(scores, values, best, weight, total):
    """Take a tile of scores (base 2, -inf where unseen) and its values into (best, weight, total)."""
    new_best = tl.maximum(best, tl.max(scores, axis=1))
    anchor = tl.where(new_best == float("-inf"), 0.0, new_best)
    shrink = tl.exp2(best - anchor)
    shares = tl.exp2(scores - anchor[:, None])
    weight = weight * shrink + tl.sum(shares, axis=1)
    total = total * shrink[:, None]
    total = tl.dot(shares.to(values.dtype), values, total, input_precision="ieee")
    return new_best, weight, total


@triton.jit
def averaged(weight, total):
    """total / weight, zeros where nothing was seen."""
    return total / tl.where(weight > 0, weight, 1.0)[:, None]
