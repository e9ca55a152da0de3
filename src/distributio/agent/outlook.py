"""What the owner allows at this moment: the policy file, the state of the machine, and whether a runner works at all."""

import logging
import time
from collections.abc import Mapping

from msgspec.structs import replace

from distributio.agent import facts, hardware, policy
from distributio.agent.folder import Folder
from distributio.agent.runners.contract import Capabilities, Runner
from distributio.wire.native import HostFacts

LOOK_EVERY_SECONDS = 1.0

log = logging.getLogger(__name__)


class Outlook:
    """Looks at the owner's policy and the machine from time to time. Raises PolicyError if the first look finds a policy
    that cannot be read; later the one from before stays in force."""

    def __init__(self, folder: Folder, name: str, runners: Mapping[str, Runner]) -> None:
        self._folder = folder
        self._name = name
        self._sensors = hardware.Sensors(folder.root)
        self._stamp = self._policy_stamp()
        self._looked_at = time.monotonic()
        self.policy = folder.policy()
        self.is_suspended = folder.is_suspended
        self._capabilities: dict[str, Capabilities] = {}
        for runner_name, runner in runners.items():
            seen = self._capabilities[runner_name] = runner.probe()
            if not seen.works:
                log.warning("the %s runner does not work: %s", runner_name, seen.problem)
        self._machine = self._sensors.look({})
        self.allowed = policy.lent(self.policy, self._machine)
        self.facts = self._describe()
        self.look({}, computing=False)

    def is_due(self, now: float) -> bool:
        """Whether it is time to look again; at once when the owner has said something."""
        return now - self._looked_at >= LOOK_EVERY_SECONDS or self._folder.is_suspended != self.is_suspended

    def look(self, our_seconds: Mapping[int, float], *, computing: bool) -> bool:
        """See what is allowed now; return whether the owner's policy has changed."""
        changed = self._read_policy()
        self._looked_at = time.monotonic()
        self.is_suspended = self._folder.is_suspended
        self._machine = self._sensors.look(dict(our_seconds))
        before = self.allowed.why_not
        now = policy.allowed(self.policy, self._machine, suspended=self.is_suspended, computing=computing)
        if not any(seen.works for seen in self._capabilities.values()):
            problem = "; ".join(seen.problem for seen in self._capabilities.values())
            now = policy.forbidden(now, f"no runner works here (distributio host doctor): {problem}")
        self.allowed = now
        if now.why_not != before:
            log.info("%s", "not computing: " + "; ".join(now.why_not) if now.why_not else "computing")
        if changed:
            self.facts = self._describe()
        return changed

    def _describe(self) -> HostFacts:
        return facts.describe(self._name, policy.lent(self.policy, self._machine), self._capabilities)

    def _policy_stamp(self) -> tuple[int, int] | None:
        path = self._folder.policy_path
        return (path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else None

    def _read_policy(self) -> bool:
        stamp = self._policy_stamp()
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            read = self._folder.policy()
        except policy.PolicyError as error:
            log.warning("%s The limits from before stay in force.", error)
            return False
        # The runner's sandbox was made at the start: what it lets through cannot change under running tasks.
        self.policy = replace(read, network_allowed=self.policy.network_allowed)
        return True
