"""What makes two objects the same state. Owns the walk over an object graph to one hashable value.

Everything reachable counts, so a new attribute is never forgotten; what is left out is named here:
statistics, derived caches and the constant surroundings of a role.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from typing import Any

import msgspec

ATOMS = frozenset({int, str, bytes, float, bool, type(None)})
SURROUNDINGS = frozenset(
    {
        "Allocator",
        "AttestingRunner",
        "BlockProofs",
        "Cluster",
        "FinishRate",
        "Frozen",
        "Generation",
        "MeteredRunner",
        "PullingFetcher",
        "CoordinatorSide",
        "Router",
        "SourceSide",
        "WorkerContext",
        "WorkerSide",
    }
)
LEFT_OUT = {
    "BlockPool": {"_holds"},  # equal to the holds of live sequences: checked in every state
    "Farewell": {"_next_s"},
    "DecodeRole": {"decoded_tokens", "prefilled_tokens"},
    "DecodeScheduler": {"num_preemptions", "max_num_batched_tokens", "max_num_seqs"},
    "Hold": {"_pool"},
    "CacheNews": {"_next_s"},
    "Keeper": {"kept_blocks", "dropped_blocks", "failed_runs", "_numbers"},
    "Lender": {"asked_blocks", "lent_memory_blocks", "lent_disk_blocks", "_numbers"},
    "LeaseTable": {"_clock", "granted", "released", "expired"},
    "PrefillRole": {"computed_tokens"},
    "PrefillScheduler": {"max_num_batched_tokens", "max_num_seqs"},
    "RequestLife": {"order_seqs", "strikes", "timeline", "arrival_s", "deadline_s"},
    "SleepState": {"_roles", "_resting", "_outbox"},
    "Sequence": {"keys", "root", "sampling", "arrival_s"},
    "WorkerRecord": {"hello", "load", "last_seen_s", "step", "step_moved_s", "sent_seq"},
    "WorkerLoop": {
        "account",  # published after every event: equal to what is live
        "busy",
        "dropped_messages",
        "outbox",
        "roles",
        "steps",
        "_card",
        "_introduction",
        "_listened_s",
        "_next_expiry_s",
        "_silence",
    },
    "_Lease": {"covered"},
}
_fields: dict[type, tuple[str, ...]] = {}


def _names(kind: type) -> tuple[str, ...]:
    """Attributes of a class, by slots or by a walk of an instance's dict later."""
    left_out = LEFT_OUT.get(kind.__name__, set())
    slots = [
        name
        for base in kind.__mro__
        for name in getattr(base, "__slots__", ())
        if not name.startswith("__")
    ]
    return tuple(name for name in slots if name not in left_out)


def freeze(value: Any, seen: dict[int, int]) -> Any:
    """A hashable value that is equal exactly for equal graphs; `seen` numbers shared objects."""
    kind = type(value)
    if kind in ATOMS:
        return value
    if kind is list or kind is tuple or kind is deque:
        return tuple([freeze(item, seen) for item in value])
    if kind is dict or kind is OrderedDict:
        return tuple([(freeze(k, seen), freeze(v, seen)) for k, v in value.items()])
    if kind is set or kind is frozenset:
        return tuple(sorted(value))
    if kind is bytearray:
        return bytes(value)
    return _freeze_object(value, kind, seen)


def _freeze_object(value: Any, kind: type, seen: dict[int, int]) -> Any:
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, msgspec.Struct):
        return msgspec.msgpack.encode(value)
    if kind.__name__ in SURROUNDINGS or callable(value):
        return None
    number = seen.get(id(value))
    if number is not None:
        return ("same", number)
    seen[id(value)] = len(seen)
    if hasattr(value, "__dict__"):
        left_out = LEFT_OUT.get(kind.__name__, set())
        return (
            kind.__name__,
            *[freeze(v, seen) for name, v in vars(value).items() if name not in left_out],
        )
    names = _fields.get(kind)
    if names is None:
        names = _fields[kind] = _names(kind)
    return (kind.__name__, *[freeze(getattr(value, name), seen) for name in names])
