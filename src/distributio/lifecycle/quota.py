"""May a project have more, and whose turn is it: limits, and shares of the site that fade with time."""

import math
from collections.abc import Mapping

from msgspec import Struct

# What is limited, and how it is called in messages.
RESOURCES: dict[str, str] = {
    "jobs_in_flight": "jobs in flight",  # not yet decided
    "cores_in_use": "cores in use",  # of tasks with hosts, as the jobs ask for them
    "storage_bytes": "bytes stored",  # images, inputs and results
}

HALF_LIFE_SECONDS = 3600.0


class Exceeded(Struct, frozen=True):
    """A limit that would be passed."""

    resource: str
    limit: int
    used: int
    asked: int

    def __str__(self) -> str:
        name = RESOURCES.get(self.resource, self.resource)
        left = max(0, self.limit - self.used)
        return f"{self.asked} more {name} are asked for and {left} are left: {self.used} of {self.limit} are used"


def check(limits: Mapping[str, int], usage: Mapping[str, int], request: Mapping[str, int]) -> list[Exceeded]:
    """Every limit that granting the request would pass, in the order of RESOURCES. What has no limit is free, what is
    not asked for is not checked: a project that is over its limit may still ask for other things."""
    known = [*RESOURCES, *(resource for resource in request if resource not in RESOURCES)]
    return [
        Exceeded(resource, limits[resource], usage.get(resource, 0), request[resource])
        for resource in known
        if request.get(resource, 0) > 0
        and resource in limits
        and usage.get(resource, 0) + request[resource] > limits[resource]
    ]


def decayed(used: float, used_at: float, now: float, half_life_seconds: float = HALF_LIFE_SECONDS) -> float:
    """A past use as it counts now. A clock that went back forgives nothing."""
    return used * math.pow(0.5, max(0.0, now - used_at) / half_life_seconds)
