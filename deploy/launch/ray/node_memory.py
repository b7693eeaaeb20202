"""How large a worker's KV pool is on the node that it got. Owns the arithmetic from a node's memory to a pool.

A node that joined Ray for Baton is shared evenly: its slots, or its CPUs in parts of a worker's, say among how many.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from deploy.config.values import format_bytes
from deploy.host.memory import KV_LIMIT, PROCESS_BYTES
from deploy.launch.ray.placement import SLOTS
from engine.checkpoints.prepared import ELEMENT_BYTES
from protocol.errors import ConfigError

if TYPE_CHECKING:
    from deploy.launch.ray.records import Demand, NodeFacts
    from protocol.specs import WorkerSpec

NODE_SHARE = 0.60
"""Of what a node has for Baton: weights, processes and pools together. Page cache and messages have the rest."""


@dataclass(frozen=True)
class NodeUse:
    """A node, and what other workers have there, pools and the arrays of their largest steps: what is taken (`settled`), and
    what may not be yet (`starting`). `weights_bytes` is there once, for all of them; `step_bytes` are the arrays of the
    worker that comes."""

    node: NodeFacts
    settled: tuple[int, ...]
    starting: tuple[int, ...]
    weights_bytes: int
    step_bytes: int = 0

    @property
    def process_bytes(self) -> int:
        """What the worker that comes takes beside its pool."""
        return PROCESS_BYTES + self.step_bytes

    @property
    def total_bytes(self) -> int:
        """What the node has for Baton: free, or taken by Baton already; less where Ray was told so."""
        ours = self.node.available_bytes + with_processes(self.settled)
        told = self.node.resources.get("memory")
        return ours if told is None else min(ours, int(told))

    @property
    def free_bytes(self) -> int:
        """What is left of it for one worker more, when all that starts has its own."""
        taken = with_processes(self.settled) + with_processes(self.starting)
        return max(0, self.total_bytes - taken - self.weights_bytes)

    def even_pool(self, demand: Demand) -> int:
        """Bytes of a pool there when no flag says otherwise; may be less than nothing."""
        share = max(self._num_workers(demand), len(self.settled) + len(self.starting) + 1)
        even = (self.total_bytes * NODE_SHARE - self.weights_bytes) / share
        return int(min(even, self.free_bytes * KV_LIMIT)) - self.process_bytes

    def _num_workers(self, demand: Demand) -> int:
        slots = int(sum(self.node.resources.get(slot, 0) for slot in SLOTS))
        cpus = self.node.resources.get("CPU", 1.0)
        return slots or max(1, int(cpus // max(demand.num_cpus, 1.0)))

    def check(self, kv_bytes: int, flag: str) -> None:
        """Raise ConfigError when a pool of that size, which `flag` asked for, does not fit there."""
        if kv_bytes + self.process_bytes > self.free_bytes * KV_LIMIT:
            raise ConfigError(
                f"{flag}: a KV pool of {format_bytes(kv_bytes)} and {format_bytes(self.process_bytes)} for its "
                f"process do not fit in {KV_LIMIT:.0%} of the {format_bytes(self.free_bytes)} that node "
                f"{self.node.hostname} has left for Baton; give a smaller size, or none: then it is made for each node"
            )


def with_processes(pools: tuple[int, ...]) -> int:
    """Bytes of these pools and of the processes around them."""
    return sum(pools) + PROCESS_BYTES * len(pools)


def with_pool(spec: WorkerSpec, kv_bytes: int, needed_tokens: int | None, node: str) -> WorkerSpec:
    """The spec with a pool of that size; ConfigError when it holds too little."""
    block_bytes = block_bytes_of(spec)
    num_blocks = max(0, kv_bytes) // block_bytes
    least = max(2, -(-(needed_tokens or 0) // spec.block_size)) if spec.role.computes else 2
    if num_blocks < least:
        raise ConfigError(
            f"node {node} has {format_bytes(max(0, kv_bytes))} for a KV pool, and {format_bytes(least * block_bytes)} "
            "are needed at least; free memory there, or serve with a smaller --max-model-len"
        )
    room = num_blocks * spec.block_size if spec.role.computes else spec.max_model_len
    length = min(spec.max_model_len, room)
    return msgspec.structs.replace(
        spec, num_blocks=num_blocks, kv_cache_bytes=kv_bytes, max_model_len=length
    )


def block_bytes_of(spec: WorkerSpec) -> int:
    """Bytes of one block of its model."""
    element_bytes = ELEMENT_BYTES["bfloat16" if spec.model.dtype == "bfloat16" else "float32"]
    return spec.block_size * spec.model.config.kv_bytes_per_token(element_bytes)
