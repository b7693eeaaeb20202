"""A revision more, while the server runs. Owns what must be made for it beside its workers: the model's files, a cluster, and its place at
the edge; and that launcher and coordinator know of it when either starts again.

    prepare: files ─► open: ModelSpec ─► Cluster, Member, Offer ─► save: ModelsOrder ─► launcher, for what it starts from now on
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from coordinator.cluster.fleet import Member
from coordinator.cluster.release import COMING, HERE, Release, Standing
from coordinator.cluster.rollouts import Rollouts
from coordinator.edge.http.limits import EdgeLimits
from coordinator.edge.text.chat_template import ChatTemplate
from coordinator.edge.text.kept_fields import try_template
from deploy.config.models import key_for
from deploy.config.topology import cache_directory
from deploy.host.later_models import context_length
from deploy.host.model_memory import with_quantization
from deploy.host.model_source import OTHER_TEMPLATE, UNGUARDED, prepare
from protocol.clock import SystemClock
from protocol.messages.launcher import ModelsOrder
from protocol.specs import RevisionSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from coordinator.cluster.cluster import Cluster
    from coordinator.cluster.fleet import Fleet
    from coordinator.cluster.residents import Residents
    from coordinator.cluster.rollouts import Source
    from engine.checkpoints.prepared import Dtype
    from engine.checkpoints.progress import PrepareStage
    from protocol.clock import Clock
    from protocol.roles import Role
    from protocol.specs import CoordinatorSpec, ModelSpec, PreparedModel

HERE_BEFORE = tuple(standing.value for standing in (*COMING, *HERE))
"""Where a revision was whose workers are there, or on their way."""


@dataclass(frozen=True, slots=True)
class Around:
    """Who takes part: `make_cluster` makes a model's cluster, `offer` and `withdraw` are the edge's, `tell` is the launcher's ear."""

    fleet: Fleet
    make_cluster: Callable[[ModelSpec], Cluster]
    offer: Callable[[ModelSpec, Cluster], Awaitable[None]]
    withdraw: Callable[[str], None]
    tell: Callable[[ModelsOrder], bool]


class RevisionGrowth:
    """Satisfies coordinator.cluster.rollouts.Growth. `models` are those of the spec, and what was opened since."""

    def __init__(self, spec: CoordinatorSpec, around: Around) -> None:
        self.refusal = spec.no_rollouts
        self._spec, self._around = spec, around
        self._models = {model.name: model for model in spec.models}
        self._shipped = frozenset(m.name for m in spec.models if m.like is None)
        self._prepared: dict[str, PreparedModel] = {}

    async def prepare(self, source: Source) -> None:
        """See Growth."""
        beside = self._beside(source.release)
        called = source.release.spelled(source.revision)
        flags = [OTHER_TEMPLATE] if beside.chat_template is not None else []
        flags += [UNGUARDED] if self._spec.allow_special_tokens_in_content else []
        dtype: Dtype = "bfloat16" if beside.model.dtype == "bfloat16" else "float32"
        self._prepared[called] = await asyncio.to_thread(
            prepare, source.model, (called,), dtype, cache_directory(), _nobody_looks, flags
        )

    async def open(self, source: Source) -> tuple[Cluster, Mapping[Role, int]]:
        """See Growth. What came with the server is only loaded again."""
        called = source.release.find(source.revision).model
        around, beside = self._around, self._beside(source.release)
        target = around.fleet.member(beside.name).cluster.books.pools.target
        shape = target if any(target.values()) else beside.expected
        if called in self._shipped:
            return around.fleet.member(called).cluster, shape
        model = await asyncio.to_thread(self._spec_of, source, self._prepared.pop(called))
        cluster = around.make_cluster(model)
        await around.offer(model, cluster)
        around.fleet.add(Member(model.key, cluster, model.model.weights_hash))
        self._models[called] = model
        return cluster, shape

    def _spec_of(self, source: Source, prepared: PreparedModel) -> ModelSpec:
        beside = self._beside(source.release)
        prepared = with_quantization(prepared, beside.model.quantization)
        template = beside.chat_template
        chosen = ChatTemplate.from_directory(
            Path(prepared.directory), Path(template) if template else None
        )
        try_template(chosen, SystemClock(), EdgeLimits())
        keys = [model.key for model in self._models.values()]
        return msgspec.structs.replace(
            beside,
            key=key_for(prepared.served_names[0], keys),
            like=beside.like if beside.like is not None else beside.key,
            model=prepared,
            max_model_len=context_length(beside, prepared),
        )

    def _beside(self, release: Release) -> ModelSpec:
        """The stable one: a new revision has its options."""
        return self._models[release.find(release.stable).model]

    def save(self, releases: Iterable[Release]) -> bool:
        """See Growth."""
        spoken = {}
        for release in releases:
            weights = release.weights
            for each in release.revisions.values():
                spoken[each.model] = RevisionSpec(
                    names=release.names,
                    revision=each.name,
                    weight=weights.get(each.name, 0.0),
                    standing=each.standing.value,
                    is_stable=each.name == release.stable,
                    is_previous=each.name == release.previous,
                )
        models = [
            msgspec.structs.replace(model, revision=spoken.get(name, model.revision))
            for name, model in self._models.items()
        ]
        return self._around.tell(ModelsOrder(models=models))

    def close(self, model: str) -> None:
        """See Growth."""
        known = self._models.pop(model)
        self._around.fleet.drop(known.key)
        self._around.withdraw(model)


def _nobody_looks(stage: PrepareStage, fraction: float) -> None:
    """A rollout shows no bar."""
    del stage, fraction


def make_rollouts(
    spec: CoordinatorSpec,
    around: Around,
    residents: Residents | None,
    clock: Clock,
) -> Rollouts:
    """Every model that has revisions, as the spec has them or as a coordinator before this one left them."""
    growth = RevisionGrowth(spec, around)
    return Rollouts(
        releases_of(spec.models),
        {member.name: member.cluster for member in around.fleet.members},
        {model.name: model.model.served_names for model in spec.models if model.like is None},
        growth,
        clock,
        unload=None if residents is None else residents.unload,
        opened=[model.name for model in spec.models if model.like is not None],
    )


def releases_of(models: Iterable[ModelSpec]) -> list[Release]:
    """One for all models with the same names."""
    found: dict[tuple[str, ...], list[tuple[str, RevisionSpec]]] = {}
    for model in models:
        if model.revision is not None:
            found.setdefault(model.revision.names, []).append((model.name, model.revision))
    return [
        Release(
            names,
            {each.revision: (model, each.weight) for model, each in own},
            {each.revision: Standing(each.standing) for _, each in own},
            stable=next((each.revision for _, each in own if each.is_stable), None),
            previous=next((each.revision for _, each in own if each.is_previous), None),
        )
        for names, own in found.items()
    ]
