"""The few calls of libcuda that torch does not offer: device memory that another process can map by a descriptor.

    create ─► handle ─► export ─► descriptor ─(unix socket)─► import ─► handle ─► map     CUDA virtual memory management

Everything here works in torch's primary context, which the caller has made current.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint64, c_ushort
from typing import Any

from protocol.errors import BatonError

_PINNED = 1
_POSIX_DESCRIPTOR = 1
_ON_DEVICE = 1
_MINIMUM = 0
_READ, _READ_WRITE = 1, 3


class DriverError(BatonError):
    """A call of libcuda failed; says which and why."""


class _Location(Structure):
    _fields_ = (("type", c_int), ("id", c_int))  # type: ignore[mutable-override]


class _Flags(Structure):
    _fields_ = (  # type: ignore[mutable-override]
        ("compression", c_ubyte),
        ("gpu_direct_rdma", c_ubyte),
        ("usage", c_ushort),
        ("reserved", c_ubyte * 4),
    )


class _Properties(Structure):
    _fields_ = (  # type: ignore[mutable-override]
        ("type", c_int),
        ("handle_types", c_int),
        ("location", _Location),
        ("windows", ctypes.c_void_p),
        ("flags", _Flags),
    )


class _Access(Structure):
    _fields_ = (("location", _Location), ("flags", c_int))  # type: ignore[mutable-override]


@functools.cache
def _library() -> Any:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise DriverError(f"no NVIDIA driver: {error}") from error
    library.cuGetErrorString.argtypes = (c_int, POINTER(c_char_p))
    return library


def _call(name: str, *arguments: Any) -> None:
    library = _library()
    status = getattr(library, name)(*arguments)
    if status:
        text = c_char_p()
        library.cuGetErrorString(status, byref(text))
        reason = text.value.decode() if text.value else f"error {status}"
        raise DriverError(f"{name}: {reason}")


def _properties(device: int) -> _Properties:
    return _Properties(
        type=_PINNED, handle_types=_POSIX_DESCRIPTOR, location=_Location(_ON_DEVICE, device)
    )


def rounded_size(num_bytes: int, device: int) -> int:
    """`num_bytes` up to a multiple of what the device allocates."""
    granularity = c_size_t()
    properties = _properties(device)
    _call("cuMemGetAllocationGranularity", byref(granularity), byref(properties), _MINIMUM)
    return -(-num_bytes // granularity.value) * granularity.value


class Mapping:
    """Device memory at `address` in this process: its own, or another process's by descriptor."""

    def __init__(self, handle: int, num_bytes: int, device: int, *, writable: bool) -> None:
        """Takes over the handle. `num_bytes` is a rounded size."""
        self.num_bytes = num_bytes
        self._handle = handle
        self._address = c_uint64()
        size = c_size_t(num_bytes)
        try:
            _call(
                "cuMemAddressReserve",
                byref(self._address),
                size,
                c_size_t(0),
                c_uint64(0),
                c_uint64(0),
            )
        except DriverError:
            _call("cuMemRelease", c_uint64(handle))
            raise
        try:
            _call("cuMemMap", self._address, size, c_size_t(0), c_uint64(handle), c_uint64(0))
            access = _Access(_Location(_ON_DEVICE, device), _READ_WRITE if writable else _READ)
            _call("cuMemSetAccess", self._address, size, byref(access), c_size_t(1))
        except DriverError:
            _call("cuMemAddressFree", self._address, size)
            _call("cuMemRelease", c_uint64(handle))
            raise

    @classmethod
    def create(cls, num_bytes: int, device: int) -> Mapping:
        """New memory of this process."""
        handle, properties = c_uint64(), _properties(device)
        _call("cuMemCreate", byref(handle), c_size_t(num_bytes), byref(properties), c_uint64(0))
        return cls(handle.value, num_bytes, device, writable=True)

    @classmethod
    def imported(cls, descriptor: int, num_bytes: int, device: int) -> Mapping:
        """Another process's memory; the descriptor stays the caller's."""
        handle = c_uint64()
        _call(
            "cuMemImportFromShareableHandle",
            byref(handle),
            ctypes.c_void_p(descriptor),
            _POSIX_DESCRIPTOR,
        )
        return cls(handle.value, num_bytes, device, writable=False)

    def export(self) -> int:
        """A descriptor by which another process can import the memory; the caller closes it."""
        descriptor = c_int(-1)
        _call(
            "cuMemExportToShareableHandle",
            byref(descriptor),
            c_uint64(self._handle),
            _POSIX_DESCRIPTOR,
            c_uint64(0),
        )
        return descriptor.value

    @property
    def address(self) -> int:
        """Where it lies on the device, for this process."""
        return self._address.value

    def close(self) -> None:
        """Unmap; the memory goes with its last mapping in any process."""
        if not self._handle:
            return
        size = c_size_t(self.num_bytes)
        _call("cuMemUnmap", self._address, size)
        _call("cuMemAddressFree", self._address, size)
        _call("cuMemRelease", c_uint64(self._handle))
        self._handle = 0
