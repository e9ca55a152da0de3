"""Which options of `docker run` cannot be granted on a lent machine, and what to do instead."""

NO_PORTS = "Nobody can reach a job from outside. Write what you need to /root/shared/results."

_MACHINE = "It would give the job a part of that machine or change how it protects itself. Leave it out."
_NO_NETWORK = "Jobs have no network of their own to configure. Leave it out."
_CPUS = "Which cores a machine has is its owner's business. Say how many you need with --cpus."
_MEMORY = "Say how much memory the job needs with -m."
_DISK = "Say how much it writes with --disk."
_HEALTH = "Health checks are for services; a job is over when its command ends. Limit its time with --timeout."
_LOGS = "The site keeps the log: `distributio logs`."
_NAMES = "The name of the machine and its groups are fixed, so that results do not depend on where they were made."
_VOLUMES = "There are no volumes that outlive a job. Send files with `-v LOCAL:PATH:ro`, write to /root/shared/results."
_STOP = "A job that is stopped ends at once. Limit its time with --timeout."
_RUNTIME = "How containers are isolated is up to the machine they run on. Leave it out."
_LOCAL_FILE = "The container is not on this machine. `distributio run -d` prints the job's id instead."

_REASONS: dict[str, tuple[str, ...]] = {
    NO_PORTS: ("-p", "--publish", "--expose"),
    _MACHINE: (
        "--device", "--device-cgroup-rule", "--cap-add", "--cgroup-parent", "--cgroupns", "--userns", "--uts",
        "--sysctl", "--group-add", "--oom-score-adj", "--use-api-socket", "--annotation", "--storage-opt",
    ),
    _NO_NETWORK: (
        "--add-host", "--dns", "--dns-option", "--dns-opt", "--dns-search", "--ip", "--ip6", "--link",
        "--link-local-ip", "--mac-address", "--network-alias", "--net-alias",
    ),
    _CPUS: (
        "--cpu-period", "--cpu-quota", "--cpu-rt-period", "--cpu-rt-runtime", "-c", "--cpu-shares", "--cpuset-cpus",
        "--cpuset-mems", "--cpu-count", "--cpu-percent",
    ),
    _MEMORY: ("--memory-reservation", "--memory-swappiness", "--kernel-memory"),
    _DISK: (
        "--blkio-weight", "--blkio-weight-device", "--device-read-bps", "--device-read-iops", "--device-write-bps",
        "--device-write-iops", "--io-maxbandwidth", "--io-maxiops",
    ),
    _HEALTH: (
        "--health-cmd", "--health-interval", "--health-retries", "--health-start-period", "--health-start-interval",
        "--health-timeout",
    ),
    _LOGS: ("--log-driver", "--log-opt"),
    _NAMES: ("--hostname", "--domainname"),
    "It is short for --hostname, which is fixed. For help, write --help.": ("-h",),
    _VOLUMES: ("--volumes-from", "--volume-driver"),
    _STOP: ("--stop-signal", "--stop-timeout"),
    _RUNTIME: ("--runtime", "--isolation"),
    _LOCAL_FILE: ("--cidfile", "--detach-keys"),
    "Give each label with -l.": ("--label-file",),
}  # fmt: skip

REFUSED: dict[str, str] = {name: reason for reason, names in _REASONS.items() for name in names}


def why(name: str) -> str:
    """Why this option of `docker run` is refused and what to do; empty if it is not one of those."""
    return REFUSED.get(name, "")
