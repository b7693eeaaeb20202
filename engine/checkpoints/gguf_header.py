"""The bytes of one GGUF file. Owns its layout and every check of it; what keys and names mean is engine.checkpoints.gguf_file's.

    "GGUF"  version  number of tensors  number of keys
    keys:    name, type, value                                  strings are a length and UTF-8
    tensors: name, dimensions (fastest first), type, offset     from the start of the data
    data:    at the next multiple of general.alignment

Nothing is believed: a count or a length is compared with the bytes that are left before anything is made of it, so
a file costs memory and time in proportion to its own size. Torch-free.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import gguf
import numpy as np

from engine.checkpoints.fields import open_file, shown
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_VERSIONS = (2, 3)
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_LEAST_KEY_BYTES, _LEAST_TENSOR_BYTES = 13, 32
_MAX_DIMENSIONS, _MAX_NAME_BYTES = 4, 65_535
_DEFAULT_ALIGNMENT, _MAX_ALIGNMENT = 32, 1 << 20
_SIZES: dict[int, tuple[int, int]] = {
    int(kind): (int(block), int(size)) for kind, (block, size) in gguf.GGML_QUANT_SIZES.items()
}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor's place in its file: `shape` is slowest first, `start` counts from the beginning of the file."""

    name: str
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    num_bytes: int
    data: memoryview


class GgufHeader:
    """Keys and tensors of one file, all of which lie inside it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_file(path) as file:
                self._view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} is not a readable GGUF file: {error}") from error
        self._at = 0
        num_tensors, num_keys = self._start()
        self.fields: dict[str, Any] = {}
        for _ in range(num_keys):
            self._read_key()
        entries = [self._read_tensor() for _ in range(num_tensors)]
        self.tensors = self._place(entries)

    def _fail(self, problem: str) -> NoReturn:
        raise ConfigError(f"{self.path} is not a readable GGUF file: {problem}")

    def _take(self, count: int, what: str) -> memoryview:
        if count > len(self._view) - self._at:
            left = len(self._view) - self._at
            self._fail(f"{what} would take {count} bytes, {left} are left; fetch it again")
        self._at += count
        return self._view[self._at - count : self._at]

    def _number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self._take(struct.calcsize(code), what))[0]

    def _start(self) -> tuple[int, int]:
        if bytes(self._take(4, "the mark")) != b"GGUF":
            self._fail("it does not begin with GGUF")
        version = self._number("I", "the version")
        if version not in _VERSIONS:
            swapped = version & 0xFFFF == 0
            what = "big-endian files are" if swapped else f"version {version} is"
            self._fail(f"{what} not supported; supported: little-endian, versions 2 and 3")
        num_tensors, num_keys = self._number("Q", "tensor_count"), self._number("Q", "kv_count")
        left = len(self._view) - self._at
        for name, count, least in (
            ("tensor_count", num_tensors, _LEAST_TENSOR_BYTES),
            ("kv_count", num_keys, _LEAST_KEY_BYTES),
        ):
            if count * least > left:
                self._fail(f"{name} {count} cannot be in {left} bytes")
        return num_tensors, num_keys

    def _string(self, what: str) -> str:
        raw = bytes(self._take(self._number("Q", what), what))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self._fail(f"{what} is not UTF-8: {error.reason} at byte {error.start}")

    def _read_key(self) -> None:
        key = self._string("the name of a key")
        if key in self.fields:
            self._fail(f"the key {shown(key)} is there twice")
        kind = self._number("I", f"the type of {shown(key)}")
        self.fields[key] = self._value(key, kind)

    def _value(self, key: str, kind: int) -> Any:
        what = f"the value of {shown(key)}"
        if kind == _STRING:
            return self._string(what)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            self._fail(f"{shown(key)} has the unknown type {kind}")
        return self._number(_SCALARS[kind], what)

    def _array(self, key: str) -> list[Any]:
        what = f"the array {shown(key)}"
        kind, count = self._number("I", what), self._number("Q", what)
        if kind == _STRING:
            if count * 8 > len(self._view) - self._at:
                self._fail(f"{what} would have {count} strings, which its bytes cannot hold")
            return [self._string(what) for _ in range(count)]
        if kind not in _SCALARS:
            self._fail(f"{what} has elements of type {kind}, which is not supported")
        code = np.dtype("?" if kind == _BOOL else "<" + _SCALARS[kind])
        return list(np.frombuffer(self._take(count * code.itemsize, what), code).tolist())

    def _read_tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string("the name of a tensor")
        what = f"tensor {shown(name)}"
        if len(name) > _MAX_NAME_BYTES:
            self._fail("a tensor's name has more than 65535 characters")
        num_dimensions = self._number("I", what)
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            self._fail(f"{what} has {num_dimensions} dimensions, not 1 to {_MAX_DIMENSIONS}")
        shape = tuple(self._number("Q", what) for _ in range(num_dimensions))
        if not all(shape) or math.prod(shape) >= 2**63:
            self._fail(f"{what} has the impossible shape {shape}")
        return name, tuple(reversed(shape)), self._number("I", what), self._number("Q", what)

    def _alignment(self) -> int:
        value = self.fields.get("general.alignment", _DEFAULT_ALIGNMENT)
        if not isinstance(value, int) or not 0 < value <= _MAX_ALIGNMENT or value & (value - 1):
            self._fail(f"general.alignment must be a power of two, not {shown(value)}")
        return value

    def _place(self, entries: list[tuple[str, tuple[int, ...], int, int]]) -> dict[str, GgufTensor]:
        alignment = self._alignment()
        data_start = -(-self._at // alignment) * alignment
        found: dict[str, GgufTensor] = {}
        for name, shape, code, offset in entries:
            if name in found:
                self._fail(f"the tensor {shown(name)} is there twice")
            if code not in _SIZES:
                self._fail(f"tensor {shown(name)} has the unknown type {code}")
            block, block_bytes = _SIZES[code]
            if shape[-1] % block:
                self._fail(
                    f"tensor {shown(name)} has rows of {shape[-1]}, not a multiple of {block}"
                )
            size, start = math.prod(shape) // block * block_bytes, data_start + offset
            check_bounds(f"{self.path}: tensor {shown(name)}", start, size, len(self._view))
            found[name] = GgufTensor(
                name,
                gguf.GGMLQuantizationType(code),
                shape,
                start,
                size,
                self._view[start : start + size],
            )
        self._check_overlap(found)
        return found

    def _check_overlap(self, tensors: dict[str, GgufTensor]) -> None:
        reached = 0
        for tensor in sorted(tensors.values(), key=lambda one: (one.start, one.num_bytes)):
            if tensor.start < reached:
                self._fail(f"tensor {shown(tensor.name)} overlaps the tensor before it")
            reached = tensor.start + tensor.num_bytes


def check_bounds(name: str, offset: int, size: int, file_size: int) -> None:
    """ConfigError unless bytes [offset, offset + size) lie inside a file of `file_size` bytes."""
    if offset < 0 or size < 0 or offset + size > file_size:
        raise ConfigError(
            f"{name} claims bytes [{offset}, {offset + size}) of a file of {file_size} bytes; "
            "the file is damaged or incomplete, fetch it again"
        )


def is_dequantized(kind: gguf.GGMLQuantizationType) -> bool:
    """Whether `read_values` knows this type."""
    if kind in (
        gguf.GGMLQuantizationType.F32,
        gguf.GGMLQuantizationType.F16,
        gguf.GGMLQuantizationType.F64,
    ):
        return True
    block_bytes = _SIZES[int(kind)][1]
    try:
        gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def read_values(tensor: GgufTensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The tensor's values as float32 in its shape."""
    plain = {
        gguf.GGMLQuantizationType.F32: "<f4",
        gguf.GGMLQuantizationType.F16: "<f2",
        gguf.GGMLQuantizationType.F64: "<f8",
    }.get(tensor.kind)
    if plain is not None:
        values = np.frombuffer(tensor.data, plain)
    else:
        rows = math.prod(tensor.shape[:-1])
        raw = np.frombuffer(tensor.data, np.uint8).reshape(rows, -1)
        values = gguf.quants.dequantize(raw, tensor.kind)
    return np.asarray(values, dtype=np.float32).reshape(tensor.shape)
