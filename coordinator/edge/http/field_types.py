"""Types of fields that every API has. Owns how strictly they are read; which fields there are is each API's own."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticKnownError

from coordinator.edge.http import limits
from coordinator.edge.http.field_errors import EMPTY_TEXT, LONG_TEXT, WRONG_TYPE, wrong
from protocol.keep_alive import MAX_TEXT


def _number(value: object) -> object:
    """Numbers only: pydantic alone would take "0.5" and true."""
    if isinstance(value, str | bool):
        raise PydanticKnownError("float_type")
    return value


def _integer(value: object) -> object:
    """As above."""
    if isinstance(value, str | bool):
        raise PydanticKnownError("int_type")
    return value


def _keep_alive(value: object) -> object:
    """What else it may be is said, whichever kind is wrong."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        wrong(WRONG_TYPE, "must be a number of seconds, or a string such as 5m")
    if isinstance(value, str) and len(value) > MAX_TEXT:
        wrong(LONG_TEXT, f"must have at most {MAX_TEXT} characters, such as 5m")
    return value


def _whole(values: object) -> object:
    """Numbers of JSON that are whole are integers, 5.0 too; looked at one by one only where there is such a one."""
    if isinstance(values, list) and float in set(map(type, values)):
        return [
            int(value) if isinstance(value, float) and value.is_integer() else value
            for value in values
        ]
    return values


def _stop_string(value: str) -> str:
    if not value:
        wrong(EMPTY_TEXT, "cannot be empty")
    if (size := len(value.encode())) > limits.MAX_STOP_BYTES:
        wrong(LONG_TEXT, f"must have at most {limits.MAX_STOP_BYTES} bytes, but has {size}")
    return value


Bool = Annotated[bool, Field(strict=True)]
"""True and false only: pydantic alone would take 1, "yes" and "off"."""
Int = Annotated[int, BeforeValidator(_integer)]
Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
KeepAlive = Annotated[Float | str, BeforeValidator(_keep_alive)]
Penalty = Annotated[Float, Field(ge=-2, le=2)]
StopString = Annotated[str, AfterValidator(_stop_string)]
Stops = Annotated[list[StopString], Field(fail_fast=True, max_length=limits.MAX_STOP_STRINGS)]
TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]],
    Field(fail_fast=True),
    BeforeValidator(_whole),
]
Texts = Annotated[list[Annotated[str, Field(strict=True)]], Field(fail_fast=True)]


class Lenient(BaseModel):
    """Unknown fields are kept and ignored; `misspelt` looks whether another was meant."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())
