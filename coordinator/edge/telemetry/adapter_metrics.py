"""What is counted of each adapter. Owns which of their names become labels: the first `MAX_NAMES`, and `other` for all that came later."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import Counter

MAX_NAMES = 200
OTHER = "other"
LABELS = ("model_name", "adapter")


class AdapterMetrics:
    """One model's adapters, in the registry of all."""

    def __init__(
        self, make: Callable[[str, str, tuple[str, ...]], Counter], model_name: str
    ) -> None:
        """`make` is a counter by its name, text and labels."""
        self._model_name = model_name
        self._names: set[str] = set()
        self._requests = make("baton_adapter_requests", "Requests by adapter", LABELS)
        self._prompt = make(
            "baton_adapter_prompt_tokens", "Prompt tokens accepted, by adapter", LABELS
        )
        self._output = make("baton_adapter_generation_tokens", "Tokens by adapter", LABELS)

    def started(self, name: str, num_prompt_tokens: int) -> None:
        """A request for it was admitted."""
        labels = self._labels(name)
        self._requests.labels(*labels).inc()
        self._prompt.labels(*labels).inc(num_prompt_tokens)
        self._output.labels(*labels)

    def generated(self, name: str, num_tokens: int) -> None:
        """Tokens of it, which ended or not."""
        self._output.labels(*self._labels(name)).inc(num_tokens)

    def _labels(self, name: str) -> tuple[str, str]:
        if name not in self._names and len(self._names) < MAX_NAMES:
            self._names.add(name)
        return self._model_name, name if name in self._names else OTHER
