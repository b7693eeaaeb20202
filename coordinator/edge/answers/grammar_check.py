"""Whether an answer can be kept to a constraint. Owns what is known of constraints that were tried; compiles nothing.

A constraint is tried before its request is admitted, by whoever `Compiles`: a process that can be ended, so that a
hostile one costs nobody anything. Workers, who compile it again, only see what was found good. One is tried at a time, and
tenants take turns: whoever asks for many that take long waits for them alone. The processor time of trials is the workers'
too, so a tenant that took much of it waits until that is a small share of the time that passed. All of a tenant's requests
for the same one wait for the same trial.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

import orjson

from coordinator.edge.http.bodies import check_depth, check_shape
from coordinator.planning.throughput import FinishRate
from protocol.constraints import MAX_CONSTRAINT_BYTES, Constraint, ConstraintKind, json_schema
from protocol.errors import InvalidRequest, Overloaded

MAX_KNOWN = 4096
MAX_WAITING, MAX_WAITING_OF_ONE = 256, 32
FREE_S, SHARE, MOST_REST_S = 0.2, 0.06, 2.0
"""Of processor time: what a tenant's trials may take at once, and what of the time that passes; and the longest wait for it. A
real schema takes 8 ms, so twenty new ones at once and seven a second wait for nothing."""
UNSUPPORTED_CODE = "unsupported_parameter"


def schema_constraint(value: object, path: str) -> Constraint:
    """A client's JSON schema, or JSON text of one; `path` is what the client calls it."""
    if isinstance(value, str):
        value = _read(value, path)
    if not isinstance(value, dict | bool):
        raise InvalidRequest(f"{path} must be a JSON schema", path)
    return json_schema(value)


def _read(text: str, path: str) -> object:
    """JSON in a text of a body: it is bounded as the body is, and before it is read."""
    if (size := _bytes_of(text)) > MAX_CONSTRAINT_BYTES:
        told = f"{path} must have at most {MAX_CONSTRAINT_BYTES} bytes, but has {size}"
        raise InvalidRequest(told, path)
    check_shape(text.encode("utf-8", "surrogatepass"), path)
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"{path} is not JSON: {error}", path) from error
    check_depth(path, value)
    return value


def _bytes_of(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def format_constraint(form: dict[str, object] | None, path: str) -> Constraint | None:
    """`{"type": "json_schema", "schema": …}`, as the formats of newer APIs are; None for text."""
    kind = None if form is None else form.get("type")
    if form is None or kind == "text":
        return None
    if kind == "json_object":
        return Constraint(kind=ConstraintKind.JSON_OBJECT)
    if kind != "json_schema":
        told = f"{path}.type {kind!r} is unknown; supported: text, json_object, json_schema"
        raise InvalidRequest(told, f"{path}.type")
    if form.get("schema") is None:
        raise InvalidRequest(f"{path}.schema is missing", f"{path}.schema")
    return schema_constraint(form["schema"], f"{path}.schema")


class Compiles(Protocol):
    """Tries one constraint at a time; `worked_s` is the processor time of the last one."""

    worked_s: float

    async def refusal(self, constraint: Constraint) -> str | None:
        """Why it cannot be honoured, within a few seconds; None when it can."""
        ...


class Turns:
    """What one tenant waits for: one of its constraints is tried at a time, and what they took is paid by time."""

    def __init__(self) -> None:
        self.waiting = 0
        self.lock = asyncio.Lock()
        self._owed_s = self._as_of_s = 0.0

    def owed_s(self, now_s: float) -> float:
        """Processor time that is not paid yet."""
        return max(0.0, self._owed_s - SHARE * (now_s - self._as_of_s))

    def took(self, worked_s: float, now_s: float) -> None:
        """One more trial."""
        self._owed_s, self._as_of_s = self.owed_s(now_s) + worked_s, now_s

    def rest_s(self, now_s: float) -> float:
        """How long the next trial has to wait."""
        return min(MOST_REST_S, max(0.0, self.owed_s(now_s) - FREE_S) / SHARE)


class Trial:
    """A constraint that is tried for one tenant, or waits for its turn; it ends when nobody asks any more."""

    def __init__(self, turns: Turns, task: asyncio.Task[None]) -> None:
        self.turns = turns
        self.task = task
        self.num_asking = 0


class Verdicts:
    """On one event loop. Remembers verdicts, good and bad ones, of the constraints that were used last."""

    def __init__(self, compiles: Compiles) -> None:
        self._compiles = compiles
        self._known: OrderedDict[str, str | None] = OrderedDict()
        self._lock = asyncio.Lock()
        self._turns: dict[str, Turns] = {}
        self._trials: dict[tuple[str, str], Trial] = {}
        self._finish_rate = FinishRate()

    async def of(self, constraint: Constraint, tenant: str) -> str | None:
        """Why it cannot be honoured; None when it can. Raises Overloaded where too many wait."""
        key = constraint.key
        if key not in self._known:
            await self._tried(constraint, tenant)
        self._known.move_to_end(key)
        verdict = self._known[key]
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return verdict

    async def _tried(self, constraint: Constraint, tenant: str) -> None:
        name = (tenant, constraint.key)
        trial = self._trials.get(name) or self._begin(constraint, tenant)
        trial.num_asking += 1
        try:
            await asyncio.shield(trial.task)
        finally:
            trial.num_asking -= 1
            if not trial.num_asking:
                self._end(name, trial)

    def _begin(self, constraint: Constraint, tenant: str) -> Trial:
        turns, now_s = self._turns_of(tenant), asyncio.get_running_loop().time()
        if turns.waiting >= MAX_WAITING_OF_ONE or len(self._trials) >= MAX_WAITING:
            raise Overloaded("too many new grammars at once", self._finish_rate.promise(now_s))
        self._finish_rate.begun(now_s)
        turns.waiting += 1
        trial = Trial(turns, asyncio.create_task(self._in_turn(constraint, turns)))
        self._trials[tenant, constraint.key] = trial
        return trial

    def _end(self, name: tuple[str, str], trial: Trial) -> None:
        trial.task.cancel()
        del self._trials[name]
        trial.turns.waiting -= 1
        now_s = asyncio.get_running_loop().time()
        self._finish_rate.finished(now_s)
        if not self._trials:
            self._finish_rate.idle(now_s)

    def _turns_of(self, tenant: str) -> Turns:
        """Whoever neither waits nor owes is forgotten."""
        now_s = asyncio.get_running_loop().time()
        self._turns = {name: t for name, t in self._turns.items() if t.waiting or t.owed_s(now_s)}
        return self._turns.setdefault(tenant, Turns())

    async def _in_turn(self, constraint: Constraint, turns: Turns) -> None:
        async with turns.lock:
            await self._try(constraint, turns)

    async def _try(self, constraint: Constraint, turns: Turns) -> None:
        """Unless somebody else had it tried meanwhile."""
        loop = asyncio.get_running_loop()
        if constraint.key not in self._known and (rest_s := turns.rest_s(loop.time())):
            paid = loop.create_future()
            timer = loop.call_later(rest_s, paid.set_result, None)
            try:
                await paid
            finally:
                timer.cancel()
        async with self._lock:
            if constraint.key not in self._known:
                self._known[constraint.key] = await self._compiles.refusal(constraint)
                turns.took(self._compiles.worked_s, loop.time())


class GrammarCheck:
    """What one tenant asks of the verdicts that all share."""

    def __init__(
        self, compiles: Compiles | None, tenant: str = "", verdicts: Verdicts | None = None
    ) -> None:
        self._compiles = compiles
        self._tenant = tenant
        self._verdicts = Verdicts(compiles) if verdicts is None and compiles else verdicts

    def of(self, tenant: str) -> GrammarCheck:
        """The same for another tenant."""
        return GrammarCheck(self._compiles, tenant, self._verdicts)

    @property
    def can_compile(self) -> bool:
        """Whether answers can be kept to anything."""
        return self._verdicts is not None

    async def check(self, constraint: Constraint | None, param: str) -> None:
        """Raise InvalidRequest that names the client's field, `param`, and what of it cannot be honoured."""
        if constraint is None:
            return
        if self._verdicts is None:
            told = f"{param} is not supported by this server"
            raise InvalidRequest(told, param, UNSUPPORTED_CODE)
        refusal = await self.refusal(constraint)
        if refusal is not None:
            raise InvalidRequest(f"{param}: {refusal}", param)

    async def refusal(self, constraint: Constraint) -> str | None:
        """Why an answer cannot be kept to it; None when it can."""
        assert self._verdicts is not None, "whoever asks knows that something compiles"
        if (size := _bytes_of(constraint.text)) > MAX_CONSTRAINT_BYTES:
            return f"it must have at most {MAX_CONSTRAINT_BYTES} bytes, but has {size}"
        return await self._verdicts.of(constraint, self._tenant)
