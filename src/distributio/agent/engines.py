"""Which runners a host uses, by name."""

from distributio.agent.folder import Folder
from distributio.agent.runners.contract import Runner

NAMES = ("container", "fake")


class UnknownRunner(ValueError):
    """There is no runner of this name."""


def load(name: str, folder: Folder) -> Runner:
    """The runner of this name, working in the agent's data folder. What its tasks may reach is settled here."""
    match name:
        case "container":
            from distributio.agent.runners.container import ContainerRunner

            return ContainerRunner(folder.root, network_allowed=folder.policy().network_allowed)
        case "fake":
            from distributio.agent.runners.fake import FakeRunner

            return FakeRunner(folder.root)
    raise UnknownRunner(f"there is no runner {name!r}. There are: {', '.join(NAMES)}.")
