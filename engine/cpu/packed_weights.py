"""Matrices in oneDNN's own layout, shared between processes. Owns the packed file; must not know the model.

    packed-<processor>-<torch version>.bin
        8 bytes little-endian header length, JSON PackedHeader, zeros to a multiple of 4096,
        then each matrix at a multiple of 4096 bytes

torch has no public way to make a tensor of oneDNN's layout over memory it does not own, so this goes
through the C interface that its compiler's generated code uses. Where that is missing, `open_packed`
says so and the matrices are packed into private memory of each process.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import torch

from engine.checkpoints.embedded import locked
from engine.cpu.kernel_library import instruction_sets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_PAGE_BYTES = 4096


def onednn(name: str) -> Any:
    """One of torch's oneDNN operators; they have no public names."""
    return getattr(torch.ops.mkldnn, name)


class PackedPlace(msgspec.Struct, frozen=True, kw_only=True):
    """One matrix: byte offset from the start of the data, size, oneDNN's description, and shape."""

    offset: int
    size: int
    description: bytes
    shape: tuple[int, ...]


class PackedHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Every matrix of a packed file."""

    dtype: str
    weights_hash: str
    places: dict[str, PackedPlace]


def pack(weight: torch.Tensor) -> torch.Tensor:
    """[out, in] weight in the layout that oneDNN multiplies fastest with."""
    packed: torch.Tensor = onednn("_reorder_linear_weight")(weight)
    return packed


def processor_key() -> str:
    """Short name of this processor's instruction sets: packed layouts differ between them."""
    digest = hashlib.blake2b(instruction_sets().encode(), digest_size=4).hexdigest()
    return f"{torch.backends.cpu.get_cpu_capability().lower()}-{digest}"


def packed_path(directory: Path) -> Path:
    """Where the packed file of a prepared directory lies on this machine."""
    return directory / f"packed-{processor_key()}-{torch.__version__}.bin"


def open_packed(
    path: Path, weights_hash: str, matrices: Callable[[], Iterable[tuple[str, torch.Tensor]]]
) -> dict[str, torch.Tensor]:
    """Packed matrices by name from `path`, which is written first if need be.

    Raises OSError, RuntimeError, AttributeError, ValueError or msgspec's errors when this torch or this directory
    does not allow it. The memory stays mapped as long as the process lives.
    """
    if not path.exists():
        with locked(path.with_suffix(".lock")):
            if not path.exists():
                _write(path, weights_hash, matrices())
    return _read(path, weights_hash)


def _write(path: Path, weights_hash: str, matrices: Iterable[tuple[str, torch.Tensor]]) -> None:
    places: dict[str, PackedPlace] = {}
    offset, dtype = 0, ""
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        body, whole = Path(name, "body"), Path(name, "whole")
        with body.open("wb") as file:
            for key, weight in matrices:
                packed, dtype = pack(weight), str(weight.dtype)
                description = onednn("_get_mkldnn_serialized_md")(packed).numpy().tobytes()
                size = onednn("_nbytes")(packed)
                places[key] = PackedPlace(
                    offset=offset, size=size, description=description, shape=tuple(weight.shape)
                )
                data = (ctypes.c_char * size).from_address(onednn("data_ptr")(packed))
                file.write(data)
                file.write(b"\0" * (-size % _PAGE_BYTES))
                offset += size + -size % _PAGE_BYTES
        header = msgspec.json.encode(
            PackedHeader(dtype=dtype, weights_hash=weights_hash, places=places)
        )
        with whole.open("wb") as file, body.open("rb") as data_file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.write(b"\0" * (-file.tell() % _PAGE_BYTES))
            while chunk := data_file.read(1 << 22):
                file.write(chunk)
        whole.replace(path)


def _read(path: Path, weights_hash: str) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    size = int.from_bytes(mapped[:8], "little")
    header = msgspec.json.decode(mapped[8 : 8 + size], type=PackedHeader)
    if header.weights_hash != weights_hash:
        raise ValueError(f"{path} was packed from other weights")
    data_start = 8 + size + -(8 + size) % _PAGE_BYTES
    last = max(place.offset + place.size for place in header.places.values())
    if data_start + last > len(mapped):
        raise ValueError(f"{path} is cut short")
    array = np.frombuffer(mapped, dtype=np.uint8)
    _mappings.append(array)
    address = array.ctypes.data + data_start
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    dtype = header.dtype.removeprefix("torch.")
    return {
        name: _tensor_over(library, address + place.offset, place, dtype)
        for name, place in header.places.items()
    }


_mappings: list[Any] = []
"""Keeps the mapped files alive: the tensors over them do not own their memory."""


def _tensor_over(
    library: ctypes.CDLL, address: int, place: PackedPlace, dtype: str
) -> torch.Tensor:
    """A tensor of oneDNN's layout over bytes that stay where they are."""
    handle = ctypes.c_void_p()
    sizes = (ctypes.c_int64 * 2)(*place.shape)
    strides = (ctypes.c_int64 * 2)(place.shape[1], 1)
    status = library.aoti_torch_create_tensor_from_blob_v2(
        ctypes.c_void_p(address),
        ctypes.c_int64(2),
        sizes,
        strides,
        ctypes.c_int64(0),
        ctypes.c_int32(getattr(library, f"aoti_torch_dtype_{dtype}")()),
        ctypes.c_int32(library.aoti_torch_device_type_cpu()),
        ctypes.c_int32(0),
        ctypes.byref(handle),
        ctypes.c_int32(library.aoti_torch_layout__mkldnn()),
        ctypes.c_char_p(place.description),
        ctypes.c_int64(len(place.description)),
    )
    if status != 0:
        raise RuntimeError("torch refused a packed matrix")
    new_capsule = ctypes.pythonapi.PyCapsule_New
    new_capsule.restype = ctypes.py_object
    new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    aoti: Any = getattr(torch, "_C")._aoti  # noqa: B009, SLF001  (no public name)
    capsule = new_capsule(handle, None, None)
    tensor: torch.Tensor = aoti.alloc_tensor_by_stealing_from_void_ptr(capsule)
    return tensor
