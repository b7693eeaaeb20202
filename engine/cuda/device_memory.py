"""The bytes of a block pool on a GPU. Owns its allocation, its way to the host, and reading another worker's pool.

our pool ◄── copy + hash, one kernel ── peer's pool, mapped from a descriptor      same host
our pool ◄── pinned memory ── frames of any network road                           elsewhere
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import torch

from engine.cuda.driver import DriverError, Mapping, rounded_size
from engine.cuda.kernels.block_hash import BlockHash
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


class _Array:
    """Device memory as torch takes it without a copy."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (num_bytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
            "strides": None,
        }


def _bytes_of(mapping: Mapping, num_bytes: int, device: torch.device) -> torch.Tensor:
    return torch.as_tensor(_Array(mapping.address, num_bytes), device=device)


class _Lane:
    """A stream, and pinned memory for the small arrays that go to and fro. Each call waits for the stream at its end,
    so nothing is overwritten that is still read."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._device = device
        self._pinned = torch.empty(0, dtype=torch.int64)

    def _room(self, count: int) -> torch.Tensor:
        if count > len(self._pinned):
            self._pinned = torch.empty(2 * count, dtype=torch.int64, pin_memory=True)
        return self._pinned[:count]

    def upload(self, numbers: Sequence[int]) -> torch.Tensor:
        """int64 on the device, once the stream gets there."""
        host = self._room(len(numbers))
        host.numpy()[:] = numbers
        return host.to(self._device, non_blocking=True)

    def fetch(self, hashes: torch.Tensor) -> list[bytes]:
        """16 bytes of each row; waits for the stream. May be called once after an `upload`."""
        host = self._room(hashes.numel())
        host.copy_(hashes.view(-1), non_blocking=True)
        self.stream.synchronize()
        data = host.numpy().astype("<i8").tobytes()
        return [data[start : start + 16] for start in range(0, len(data), 16)]


class DeviceMemory:
    """`num_blocks` blocks of `block_bytes` each on the current device. Its methods may be called from any thread."""

    kind = "cuda"

    def __init__(self, num_blocks: int, block_bytes: int) -> None:
        """Raises ConfigError when the device has no room."""
        self.num_blocks = num_blocks
        self.block_bytes = block_bytes
        self.size_bytes = num_blocks * block_bytes
        self._device = torch.device("cuda", torch.cuda.current_device())
        torch.zeros(1, device=self._device)  # makes torch's context current
        try:
            rounded = rounded_size(self.size_bytes, self._device.index)
            self._mapping = Mapping.create(rounded, self._device.index)
            self.fd = self._mapping.export()
        except DriverError as error:
            raise ConfigError(
                f"cannot reserve {self.size_bytes} bytes of KV cache on the GPU ({error}); lower "
                "--gpu-memory-utilization or --kv-cache-memory"
            ) from error
        self._tensor = _bytes_of(self._mapping, self.size_bytes, self._device)
        self._tensor.zero_()
        torch.cuda.synchronize(self._device)
        self._hash = BlockHash(block_bytes, self._device)
        self._local = threading.local()
        self._fresh: dict[int, bytes] = {}

    @property
    def held_bytes(self) -> int:
        """All of it, always."""
        return self.size_bytes

    def tensor(self) -> torch.Tensor:
        """All of it as uint8."""
        return self._tensor

    @property
    def _lane(self) -> _Lane:
        """Of the calling thread."""
        if not hasattr(self._local, "lane"):
            self._local.lane = _Lane(self._device)
        lane: _Lane = self._local.lane
        return lane

    def materials(self, block_ids: Sequence[int]) -> list[bytes]:
        """What stands for each block in its digest: 16 bytes of hash, made on the device. Those that `copy_from`
        made of the bytes it wrote are taken from there, once."""
        known = {block_id: self._fresh.pop(block_id, None) for block_id in block_ids}
        missing = [block_id for block_id, found in known.items() if found is None]
        if missing:
            lane = self._lane
            with torch.cuda.stream(lane.stream):
                hashes = self._hash.hash(self._tensor, lane.upload(missing))
                known.update(zip(missing, lane.fetch(hashes), strict=True))
        return [found for block_id in block_ids if (found := known[block_id]) is not None]

    def copy_from(
        self, peer: PeerPool, source_ids: Sequence[int], target_ids: Sequence[int]
    ) -> None:
        """Blocks of another worker's pool into ours; returns when they are there."""
        lane, count = self._lane, len(source_ids)
        with torch.cuda.stream(lane.stream):
            ids = lane.upload([*source_ids, *target_ids])
            hashes = self._hash.copy(peer.tensor, self._tensor, ids[:count], ids[count:])
            self._fresh.update(zip(target_ids, lane.fetch(hashes), strict=True))

    def forget(self, block_ids: Sequence[int]) -> None:
        """Whatever `copy_from` noted of these blocks is not asked for any more."""
        for block_id in block_ids:
            self._fresh.pop(block_id, None)

    def readable(self, first: int, count: int) -> memoryview:
        """The bytes of `count` blocks from `first` on, copied to pinned memory of their own."""
        with torch.cuda.stream(self._lane.stream):
            host = self._span(first, count).to("cpu", non_blocking=False)
        return memoryview(host.numpy())  # type: ignore[arg-type]

    def writable(self, first: int, count: int) -> memoryview:
        """Host memory for `count` blocks from `first` on; what is in it goes to the device by `written`."""
        del first
        size = count * self.block_bytes
        if getattr(self._local, "size", -1) < size:
            self._local.staging = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            self._local.size = size
        return memoryview(self._local.staging.numpy())[:size]

    def written(self, first: int, count: int) -> None:
        """The last `writable` of this thread is filled: bring it to the device."""
        with torch.cuda.stream(stream := self._lane.stream):
            staging: torch.Tensor = self._local.staging[: count * self.block_bytes]
            self._span(first, count).copy_(staging, non_blocking=True)
        stream.synchronize()

    def _span(self, first: int, count: int) -> torch.Tensor:
        return self._tensor[first * self.block_bytes : (first + count) * self.block_bytes]

    def open_peer(self, descriptor: int, num_blocks: int) -> PeerPool:
        """Another worker's pool of blocks like ours, by its descriptor, which stays the caller's."""
        size = num_blocks * self.block_bytes
        mapping = Mapping.imported(
            descriptor, rounded_size(size, self._device.index), self._device.index
        )
        return PeerPool(mapping, _bytes_of(mapping, size, self._device))

    def close(self) -> None:
        """Give the memory back; tensors of it must not be used any more."""
        del self._tensor
        os.close(self.fd)
        self._mapping.close()


class PeerPool:
    """Another worker's pool, mapped. It can be read after its worker has ended."""

    def __init__(self, mapping: Mapping, tensor: torch.Tensor) -> None:
        self._mapping = mapping
        self.tensor = tensor

    def close(self) -> None:
        """Unmap; no copy from it may be under way."""
        del self.tensor
        self._mapping.close()
