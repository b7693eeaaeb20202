"""An adapter's content in one file, named by its digest. Owns the file's layout; what it means is the kernels'.

    <directory>/<digest>.adapter
        8 bytes length, ContentHeader as JSON, zeros up to a multiple of 64, then the panels of every part

    a [rank, filled up / COLUMNS][words of inputs][COLUMNS]      b [outputs, filled up / COLUMNS][words of rank][COLUMNS]

A word is 32 bits: a float, or two bfloat16 values that are neighbours along the summed dimension, filled up with zeros.
Both in the model's dtype; b has the scale in it. The digest covers header and panels: all that changes an answer. Written
beside its place and renamed; nothing changes it afterwards, and who has mapped it keeps it when it is removed.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import xxhash

from engine.adapters.modules import MatrixName, modules_of
from protocol.adapters import DIGEST_CHARACTERS
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from protocol.model_config import ModelConfig

    Elements = npt.NDArray[np.float32] | npt.NDArray[np.uint16]

COLUMNS = 16
FORMAT_VERSION = 2
MAX_RANK = 64
_ALIGNMENT = 64
WORD_BYTES = 4
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}


class PartPlace(msgspec.Struct, frozen=True, kw_only=True):
    """What is added to `outputs` sums of a matrix from `first` on. `a` and `b` are byte offsets into the panels."""

    layer: int
    matrix: MatrixName
    first: int
    outputs: int
    inputs: int
    rank: int
    a: int
    b: int


class ContentHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Everything but the panels."""

    format_version: int
    dtype: str
    parts: tuple[PartPlace, ...]


class Trailer(msgspec.Struct, frozen=True, kw_only=True):
    """Behind the header: what a quick look proves the panels by."""

    size: int
    checksum: str


def panels(matrix: npt.NDArray[np.float32], dtype: str) -> Elements:
    """[columns, chain] as [columns / COLUMNS][words][COLUMNS][of a word], filled up with zeros."""
    columns, chain = matrix.shape
    whole = _shape(columns, chain, dtype)
    filled = np.zeros((whole[0] * COLUMNS, whole[1] * whole[3]), dtype=np.float32)
    filled[:columns, :chain] = matrix
    turned = filled.reshape(whole[0], COLUMNS, whole[1], whole[3]).transpose(0, 2, 1, 3)
    turned = np.ascontiguousarray(turned)
    return turned if dtype == "float32" else to_bfloat16(turned)


def _shape(columns: int, chain: int, dtype: str) -> tuple[int, int, int, int]:
    """Panels, words, columns of a panel, elements of a word."""
    packed = WORD_BYTES // ELEMENT_BYTES[dtype]
    return -(-columns // COLUMNS), -(-chain // packed), COLUMNS, packed


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Rounded to nearest even; finite values only."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def panel_bytes(columns: int, chain: int, dtype: str) -> int:
    """Of a matrix in panels."""
    return math.prod(_shape(columns, chain, dtype)) * ELEMENT_BYTES[dtype]


class Content:
    """An adapter's content, mapped; `digest` is its name. Satisfies protocol.adapters.HeldAdapter."""

    def __init__(self, digest: str, header: ContentHeader, data: memoryview) -> None:
        self.digest = digest
        self.header = header
        self.data = data
        self.num_bytes = len(data)
        self.forms: dict[str, object] = {}
        """What a backend made of it, by the backend's name."""

    def array(self, offset: int, columns: int, chain: int) -> Elements:
        """Panels of [columns, chain] at an offset, as `panels` makes them."""
        is_wide = self.header.dtype == "float32"
        size = panel_bytes(columns, chain, self.header.dtype)
        raw = np.frombuffer(self.data[offset : offset + size], dtype=np.uint8)
        flat: Elements = raw.view(np.float32) if is_wide else raw.view(np.uint16)
        return flat.reshape(_shape(columns, chain, self.header.dtype))

    def matrix(self, offset: int, columns: int, chain: int) -> npt.NDArray[np.float32]:
        """The same as [columns, chain] float32."""
        found = self.array(offset, columns, chain)
        wide = found.view(np.float32) if found.itemsize > 2 else widened(found.view(np.uint16))
        rows = wide.transpose(0, 2, 1, 3).reshape(wide.shape[0] * COLUMNS, -1)
        return rows[:columns, :chain]


def widened(values: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """bfloat16 as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def check_content(content: Content, model: ModelConfig, dtype: str) -> None:
    """ConfigError unless every part is one of the model's modules, in its dtype and within the panels."""
    header, known = content.header, {(m.layer, m.matrix, m.first): m for m in modules_of(model)}
    if (header.format_version, header.dtype) != (FORMAT_VERSION, dtype):
        raise ConfigError(f"its content has format {header.format_version}, {header.dtype}")
    for part in header.parts:
        module = known.get((part.layer, part.matrix, part.first))
        fits = module is not None and (module.outputs, module.inputs) == (part.outputs, part.inputs)
        a = part.a + panel_bytes(part.rank, part.inputs, dtype)
        b = part.b + panel_bytes(part.outputs, part.rank, dtype)
        is_there = min(part.a, part.b) >= 0 and max(a, b) <= content.num_bytes
        if not fits or not is_there or not 1 <= part.rank <= MAX_RANK:
            raise ConfigError("its content was made for another model")


def write_content(directory: Path, header: ContentHeader, blocks: Sequence[Elements]) -> str:
    """Keep an adapter's content; its digest. ConfigError when it cannot be written."""
    head = msgspec.json.encode(header)
    digest, check, size = hashlib.blake2b(head, digest_size=32), xxhash.xxh3_128(), 0
    for piece in _pieces(blocks):
        digest.update(piece)
        check.update(piece)
        size += len(piece)
    name = digest.hexdigest()
    path = content_path(directory, name)
    if path.exists():
        return name
    trailer = msgspec.json.encode(Trailer(size=size, checksum=check.hexdigest()))
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory, delete=False) as file:
            try:
                start = len(head).to_bytes(4, "little") + len(trailer).to_bytes(4, "little")
                file.write(start + head + trailer)
                file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                for piece in _pieces(blocks):
                    file.write(piece)
                file.flush()
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise ConfigError(f"an adapter cannot be kept in {directory}: {error}") from error
    return name


def _pieces(blocks: Sequence[Elements]) -> Iterator[bytes | memoryview]:
    """Every block at a multiple of the alignment."""
    for block in blocks:
        data = block.reshape(-1).view(np.uint8).data
        yield data
        if gap := -len(data) % _ALIGNMENT:
            yield b"\0" * gap


def aligned(size: int) -> int:
    """Up to the next block."""
    return size + -size % _ALIGNMENT


def content_path(directory: Path, digest: str) -> Path:
    """Where the content of that digest is; ConfigError for what is no digest."""
    if len(digest) != DIGEST_CHARACTERS or set(digest) - set("0123456789abcdef"):
        raise ConfigError(f"{digest[:80]!r} is no adapter's digest")
    return directory / f"{digest}.adapter"


def map_content(directory: Path, digest: str) -> Content:
    """The content of that digest, proven by its checksum; ConfigError when it is not there or not whole."""
    path = content_path(directory, digest)
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), os.fstat(file.fileno()).st_size, prot=mmap.PROT_READ)
        view = memoryview(mapped)
        head, tail = (int.from_bytes(view[i : i + 4], "little") for i in (0, 4))
        header = msgspec.json.decode(view[8 : 8 + head], type=ContentHeader)
        trailer = msgspec.json.decode(view[8 + head : 8 + head + tail], type=Trailer)
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"the adapter's content {path} cannot be read ({error}); load it again"
        ) from error
    data = view[aligned(8 + head + tail) :]
    if len(data) != trailer.size or xxhash.xxh3_128_hexdigest(data) != trailer.checksum:
        raise ConfigError(f"the adapter's content {path} is damaged; load it again")
    return Content(digest, header, data)
