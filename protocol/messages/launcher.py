"""What launcher and coordinator tell each other. Owns these wire types; who starts what is decided at the two ends.

    launcher → coordinator   LauncherHello LauncherGoodbye NodeLeaving WorkerExited ScaleRefused
    coordinator → launcher   ScaleOrder ScaleTogether StopOrder RetireOrder RoleOrder ModelsOrder

Every order may be repeated and then changes nothing: a hello with its list of workers shows what was lost.
"""

from __future__ import annotations

import msgspec

from protocol.messages.records import Message
from protocol.roles import Role
from protocol.specs import ModelSpec


class LauncherWorker(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A worker that the launcher runs, or will start again; `leaving`: it will not. `node` is where it is, for people;
    `waits_for` what it cannot be started without."""

    worker_id: str
    role: Role
    leaving: bool = False
    node: str = ""
    waits_for: str = ""


class LauncherHello(Message, frozen=True, kw_only=True):
    """A launcher offers to start and stop workers. `workers` are all it has now: from them a coordinator
    that was started again learns how many are wanted. None: this launcher does not say. `away` says why it can start and
    stop nothing now, and is empty when it can."""

    launcher: str
    workers: list[LauncherWorker] | None = None
    away: str = ""


class LauncherGoodbye(Message, frozen=True, kw_only=True):
    """The launcher ends, and everything with it: workers and coordinator end by themselves."""

    launcher: str


class NodeLeaving(Message, frozen=True, kw_only=True):
    """The machine of these workers will be taken away in about `deadline_s`: others are wanted in their place."""

    worker_ids: list[str]
    deadline_s: float


NOT_STARTED = 71
"""`status` of a process that the system could not start: EX_OSERR of sysexits.h."""


class WorkerExited(Message, frozen=True, kw_only=True):
    """A worker process ended, or could not be started again; `restart_in_s` is None when it will not be started again.
    `told` is for people: how it ended, and its last line."""

    worker_id: str
    pid: int
    status: int
    restart_in_s: float | None
    told: str = ""


class ScaleRefused(Message, frozen=True, kw_only=True):
    """The ordered worker will not be started; `reason` is for people, with the numbers that do not fit."""

    worker_id: str
    reason: str


class ScaleOrder(Message, frozen=True, kw_only=True):
    """Ask the launcher to start a worker, or to keep one that was to leave."""

    worker_id: str
    role: Role


class ScaleTogether(Message, frozen=True, kw_only=True):
    """Ask the launcher to start all of these workers, or none: where one does not fit, each is refused."""

    orders: list[ScaleOrder]


class StopOrder(Message, frozen=True, kw_only=True):
    """Ask the launcher to end a worker that has been drained; it is not restarted."""

    worker_id: str


class RetireOrder(Message, frozen=True, kw_only=True):
    """The worker is being drained: leave its process alone, and do not start it again when it ends."""

    worker_id: str


class RoleOrder(Message, frozen=True, kw_only=True):
    """The worker plays `role` now: start it again as that, if it must be started again."""

    worker_id: str
    role: Role


class ModelsOrder(Message, frozen=True, kw_only=True):
    """These models are served from now on, the coordinator's first one first: workers of any of them may be ordered, and a
    coordinator that is started again serves them."""

    models: list[ModelSpec]


LauncherOrder = ScaleOrder | ScaleTogether | StopOrder | RetireOrder | RoleOrder | ModelsOrder
