"""Reading a safetensors file. Owns its header and the checks of it; torch-free.

8 bytes, little-endian: length of the header
header: a JSON object of name → dtype, shape, data_offsets, and perhaps __metadata__
data: the tensors one after another, without overlap and without a gap, to the end of the file
"""

from __future__ import annotations

import math
import mmap
from functools import partial
from typing import TYPE_CHECKING, Any

from engine.checkpoints.fields import Fields, open_file, parse_object, read_bytes, shown
from engine.checkpoints.stored_tensor import StoredTensor
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from engine.checkpoints.stored_tensor import Values

_ELEMENT_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "U8", "BOOL"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
_FLOATS = ("F64", "F32", "F16", "BF16")
_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 64


def read_safetensors(path: Path, copy_bytes: int | None = None) -> dict[str, StoredTensor]:
    """Every tensor of one file. Views stay valid while they are referenced; with `copy_bytes` also when somebody cuts the
    file short meanwhile: it is read into memory, and may have so many bytes at most."""
    if copy_bytes is not None:
        return _parse(path, memoryview(read_bytes(path, copy_bytes)))
    try:
        with open_file(path) as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as safetensors: {error}") from error
    return _parse(path, memoryview(mapped))


def _parse(path: Path, view: memoryview) -> dict[str, StoredTensor]:
    size = int.from_bytes(view[:8], "little")
    if len(view) < 8 or size > min(_MAX_HEADER_BYTES, len(view) - 8):
        raise ConfigError(
            f"{path} is no whole safetensors file: its header would have {size} bytes, the file has {len(view)}"
        )
    where = f"{path}: the safetensors header"
    header = parse_object(bytes(view[8 : 8 + size]), where)
    data = view[8 + size :]
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict | None):
        raise ConfigError(f"{where}: `__metadata__` must be an object, not {shown(metadata)}")
    places = {name: _place(str(path), name, entry) for name, entry in header.items()}
    _check_contiguous(path, places, len(data))
    return {
        name: StoredTensor(
            name, dtype, shape, partial(_read, dtype, data[start:end]), dtype in _FLOATS
        )
        for name, (dtype, shape, start, end) in places.items()
    }


def _read(dtype: str, data: memoryview) -> Values:
    return dtype, data


Place = tuple[str, tuple[int, ...], int, int]


def _place(path: str, name: str, entry: Any) -> Place:
    where = f"{path}: tensor {shown(name)[1:-1]}"
    if not isinstance(entry, dict):
        raise ConfigError(f"{where} is described by {shown(entry)} instead of an object")
    fields = Fields(entry, where)
    dtype = fields.text("dtype")
    bits = _ELEMENT_BITS.get(dtype)
    if bits is None:
        fields.refuse("dtype", f"{shown(dtype)} is not a type of safetensors")
    shape = _integers(fields, "shape", _MAX_DIMENSIONS)
    offsets = _integers(fields, "data_offsets", 2)
    if len(offsets) != 2:
        fields.refuse("data_offsets", f"must be two numbers, not {shown(entry['data_offsets'])}")
    start, end = offsets
    if (end - start) * 8 != math.prod(shape) * bits:
        fields.refuse("data_offsets", f"[{start}, {end}) does not hold {dtype} of shape {shape}")
    return dtype, shape, start, end


def _integers(fields: Fields, name: str, most: int) -> tuple[int, ...]:
    value = fields.values.get(name)
    if not isinstance(value, list) or len(value) > most:
        fields.refuse(name, f"must be a list of at most {most} numbers, not {shown(value)}")
    return tuple(
        Fields({name: item}, fields.where).integer(name, least=0, most=2**63 - 1) for item in value
    )


def _check_contiguous(path: Path, places: dict[str, Place], data_bytes: int) -> None:
    reached = 0
    for name, (_, _, start, end) in sorted(places.items(), key=lambda item: item[1][2:]):
        if start != reached:
            problem = (
                "overlaps the tensor before it" if start < reached else "leaves a gap before it"
            )
            raise ConfigError(f"{path}: tensor {shown(name)[1:-1]} at [{start}, {end}) {problem}")
        reached = end
    if reached != data_bytes:
        raise ConfigError(
            f"{path} is damaged or incomplete: its tensors end at {reached}, its data at {data_bytes}"
        )
