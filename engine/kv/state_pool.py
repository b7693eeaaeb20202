"""The embedding of one prompt while it is computed. Owns the order of its sum.

A mean is summed token after token in float64: however the prompt was cut and whatever was computed beside it, the sum
has one order, and so the same bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from protocol.errors import InternalError

if TYPE_CHECKING:
    import numpy.typing as npt


class StatePool:
    """The states of one prompt, as far as they came."""

    def __init__(self) -> None:
        self.num_states = 0
        self._sum: npt.NDArray[np.float64] | None = None

    def take(self, states: npt.NDArray[np.float32]) -> None:
        """Those of the next tokens that count, [tokens, hidden]."""
        if not np.isfinite(states).all():
            raise InternalError("the model computed hidden states that are not finite numbers")
        for state in states:
            if self._sum is None:
                self._sum = state.astype(np.float64)
            else:
                self._sum += state
        self.num_states += len(states)

    def result(self) -> bytes:
        """Their mean: float32, little-endian."""
        assert self._sum is not None, "a prompt has at least one state that counts"
        return (self._sum / self.num_states).astype("<f4").tobytes()
