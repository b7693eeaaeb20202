"""What tokens cost. Owns the price list's grammar and its arithmetic, in whole billionths; pure.

MODEL=INPUT/OUTPUT or MODEL=INPUT/CACHED/OUTPUT, of a million tokens each; the model `*` is every other one
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

PICO = 1000
"""Trillionths in a billionth."""
PICO_OF_A_MILLIONTH = 1_000_000
"""A price of 1 for a million tokens is so many trillionths a token."""
MAX_PRICE = Decimal(1_000_000)
ANY = "*"


@dataclass(frozen=True, slots=True)
class Price:
    """Trillionths for a token."""

    input_pico: int = 0
    cached_pico: int = 0
    output_pico: int = 0

    def cost_nano(self, num_input: int, num_cached: int, num_output: int) -> int:
        """Of one answer, rounded; cached tokens are among the input's."""
        fresh = (num_input - num_cached) * self.input_pico
        pico = fresh + num_cached * self.cached_pico + num_output * self.output_pico
        return (pico + PICO // 2) // PICO


FREE = Price()


class Prices:
    """Each model's price."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        self._prices = dict(parse_price(text) for text in texts)

    def of(self, model: str) -> Price:
        """What its tokens cost; nothing where no price says so."""
        return self._prices.get(model) or self._prices.get(ANY, FREE)


def check_names(texts: Sequence[str], served: Sequence[str]) -> None:
    """Raise ConfigError for a price of nothing that is served, and for a served name that would be free beside priced ones."""
    names = [parse_price(text)[0] for text in texts]
    told = ", ".join(served)
    for name in names:
        if name != ANY and name not in served:
            raise ConfigError(f"--price: there is no model {name!r} here; served: {told}")
        if names.count(name) > 1:
            raise ConfigError(f"--price: {name!r} has more than one price")
    free = [name for name in served if name not in names]
    if names and free and ANY not in names:
        raise ConfigError(
            f"--price: {', '.join(free)} would cost nothing; add --price {free[0]}=…, or --price '*=…' for every other name"
        )


def parse_price(text: str) -> tuple[str, Price]:
    """A line of the list; ValueError says what to write."""
    model, _, told = text.rpartition("=")
    numbers = [_pico(part, text) for part in told.split("/")]
    if not model or len(numbers) not in (2, 3):
        raise ValueError(
            f"{text!r} is no price: write MODEL=INPUT/OUTPUT or MODEL=INPUT/CACHED/OUTPUT, for a million tokens"
        )
    return model, Price(numbers[0], numbers[-2], numbers[-1])


def price_text(text: str) -> str:
    """Checked, and kept as text."""
    parse_price(text)
    return text


def _pico(part: str, text: str) -> int:
    try:
        price = Decimal(part.strip())
    except InvalidOperation:
        raise ValueError(f"{text!r}: {part!r} is not a number") from None
    if not price.is_finite() or not 0 <= price <= MAX_PRICE:
        raise ValueError(f"{text!r}: {part} is outside 0…{MAX_PRICE}")
    pico = price * PICO_OF_A_MILLIONTH
    if pico != pico.to_integral_value():
        raise ValueError(f"{text!r}: {part} has more than six decimals")
    return int(pico)
