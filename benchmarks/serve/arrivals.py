"""What may be asked of a load's times. Owns the checks of the flags, and the times that a dataset brings itself.

How the rest is drawn is `simulation.traffic`'s.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.serve.request import BenchRequest
    from simulation.traffic import Traffic


def check(traffic: Traffic) -> Traffic:
    """The same; ConfigError names the flag that cannot be."""
    if not traffic.rate > 0:
        raise ConfigError("--request-rate: must be more than 0; give inf to send all at once")
    if not traffic.burstiness > 0:
        raise ConfigError("--burstiness: must be more than 0; 1 is Poisson")
    if traffic.ramp is None:
        return traffic
    if not math.isinf(traffic.rate):
        raise ConfigError("--ramp-up-strategy: the ramp sets the rate; leave --request-rate out")
    if not 0 <= traffic.ramp_start <= traffic.ramp_end or traffic.ramp_end == 0:
        raise ConfigError("--ramp-up-end-rps: must be more than 0, and --ramp-up-start-rps less")
    if traffic.ramp_start == 0:
        raise ConfigError("--ramp-up-start-rps: a ramp cannot begin at 0; give 1 or more")
    return traffic


def own_times(requests: Sequence[BenchRequest]) -> list[float] | None:
    """The schedule that the dataset itself brings, or None when it brings none."""
    times = [request.arrival_s for request in requests]
    if any(at_s is None for at_s in times):
        return None
    return [at_s for at_s in times if at_s is not None]
