"""What a host tells its site about itself."""

import math
from collections.abc import Mapping

from distributio import __version__
from distributio.agent import hardware, policy
from distributio.agent.folder import Folder
from distributio.agent.runners.contract import Capabilities
from distributio.wire.native import HostFacts


def describe(name: str, lent: policy.Allowed, capabilities: Mapping[str, Capabilities]) -> HostFacts:
    """What this machine is and lends. Only runners that passed their self-test are named."""
    working = {runner: seen for runner, seen in capabilities.items() if seen.works}
    return HostFacts(
        platform=hardware.platform_name(),
        name=name,
        cpus=max(1, math.ceil(lent.cpus)),
        memory_bytes=lent.memory_bytes,
        disk_bytes=lent.disk_bytes,
        gpus=lent.gpus,
        runners=list(working),
        engine=", ".join(seen.engine for seen in working.values() if seen.engine),
        sandbox=sorted({item for seen in working.values() for item in seen.sandbox}),
        network_allowed=lent.network,
        kernel=hardware.kernel(),
        cpu_model=hardware.cpu_model(),
        agent_version=__version__,
        gflops=hardware.gflops(),
    )


def attaching(folder: Folder, name: str, capabilities: Mapping[str, Capabilities]) -> HostFacts:
    """The same for a host that is about to join, from its policy file."""
    return describe(name, policy.lent(folder.policy(), hardware.Sensors(folder.root).look({})), capabilities)
