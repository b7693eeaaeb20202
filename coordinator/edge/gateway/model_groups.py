"""The model groups of one application. Owns what answers to a group's name, and what a request brings on its way there."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from coordinator.edge.gateway.calls import num_choices, prompt_guess, run_at
from coordinator.edge.gateway.routed_run import Extent, RoutedRun
from coordinator.edge.gateway.upstream_run import client
from coordinator.edge.telemetry.upstream_metrics import UpstreamMetrics
from coordinator.upstreams.deployments import groups_of
from coordinator.upstreams.journey import Journey
from coordinator.upstreams.settings import check_own

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from prometheus_client import CollectorRegistry

    from coordinator.accounts.booking import Booking
    from coordinator.edge.answers.answer import AnswerRequest
    from coordinator.edge.answers.generation_run import GenerationRun
    from coordinator.edge.gateway.routed_run import Attempt
    from coordinator.edge.telemetry.request_record import RequestFacts
    from coordinator.upstreams.deployments import Deployment
    from coordinator.upstreams.settings import RouterSettings
    from protocol.clock import Clock


SALT_BYTES = 16


class ModelGroups:
    """Made once; `close` hangs up."""

    def __init__(
        self,
        settings: RouterSettings,
        served_names: Sequence[str],
        clock: Clock,
        registry: CollectorRegistry,
    ) -> None:
        check_own(settings, served_names)
        self._settings = settings
        self._clock = clock
        self._groups = groups_of(settings)
        self._http = client()
        deployments = [it for group in self._groups.values() for it in group.deployments]
        self._deployments = deployments
        self._metrics = UpstreamMetrics(
            registry,
            {it.deployment_id: partial(_cooling, it, clock) for it in deployments},
        )

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may ask for."""
        return (*self._groups, *self._settings.aliases)

    def own_model(self, name: str) -> str | None:
        """The model of the first deployment of our own pools, in the order they are tried; None where there is none."""
        group = self._groups[self._settings.aliases.get(name, name)]
        own = [it.settings for it in group.deployments if it.settings.is_own]
        return min(own, key=lambda it: it.order).model if own else None

    def run(
        self,
        asked: AnswerRequest,
        facts: RequestFacts,
        booking: Booking | None,
        own_run: Callable[[str], Awaitable[GenerationRun]],
        may_use: Callable[[str], bool],
        salt: str = "",
    ) -> RoutedRun:
        """What answers it; `own_run` makes a run of our own pools, for a model of that name. `salt` is the client's prefix
        cache's. Where tokens are limited, an answer gets no more of them than are held for it."""
        wishes, count = asked.wishes, num_choices(asked)
        most = asked.default_max_tokens if wishes.max_tokens is None else wishes.max_tokens
        extent = Extent(count, prompt_guess(asked), most * count)
        name = self._settings.aliases.get(asked.model, asked.model)
        journey = Journey.begin(self._settings, self._groups, name, may_use, extent.num_tokens)

        told_salt = _hashed(salt) if salt else ""
        is_held = booking is not None and booking.holds_tokens

        async def attempt_at(stop: Deployment) -> Attempt:
            place = stop.settings
            if place.is_own:
                return await own_run(place.model)
            is_bounded = is_held or place.tpm is not None
            told = _bounded(asked, most) if is_bounded else asked
            return run_at(told, place, self._http, told_salt)

        return RoutedRun(journey, attempt_at, facts, self._clock, self._metrics, booking, extent)

    def view(self) -> list[dict[str, Any]]:
        """How each deployment does, for operators."""
        now_s = self._clock.now_s()
        return [deployment.view(now_s) for deployment in self._deployments]

    async def close(self) -> None:
        """No more requests."""
        await self._http.aclose()


def _bounded(asked: AnswerRequest, most: int) -> AnswerRequest:
    """The same with an end, if it named none."""
    if asked.wishes.max_tokens is not None:
        return asked
    return replace(asked, wishes=replace(asked.wishes, max_tokens=most, max_tokens_field=""))


def _hashed(salt: str) -> str:
    """As others may know it."""
    return hashlib.blake2b(salt.encode(), digest_size=SALT_BYTES).hexdigest()


def _cooling(deployment: Deployment, clock: Clock) -> float:
    return float(deployment.is_cooling(clock.now_s()))
