"""What a BOINC client says to the scheduler, and what it is answered.

Requests are read by looking for tags (boinc_xml.py); replies are written to the letter of what client 7.20.5 was seen to take.
"""

import re
from collections.abc import Sequence

from msgspec import Struct

from distributio.wire.boinc_xml import blocks, element, escape, flag, inside, number, text, unescape, whole

SCHEDULER_VERSION = 715
STATE_DONE = 5  # a client's word for: done and uploaded
MOST_MESSAGE_BYTES = 1000

EXIT_ABORTED_BY_CLIENT = 194
EXIT_CHILD_FAILED = 195
EXIT_DISK_LIMIT = 196
EXIT_TIME_LIMIT = 197
EXIT_MEMORY_LIMIT = 198
EXIT_UNSTARTED_LATE = 200
EXIT_ABORTED_BY_PROJECT = 202
EXIT_ABORTED_BY_USER = 203
EXIT_INIT_FAILURE = 206


class BadRequest(ValueError):
    """This is not a scheduler request; the message says what is missing."""


# --- requests -----------------------------------------------------------------------------------------------------


class ReportedFile(Struct, frozen=True, kw_only=True):
    """An output file that the client says it uploaded, or gave up, then with `error`."""

    name: str
    size_bytes: int
    md5: str
    error: str = ""


class ReportedResult(Struct, frozen=True, kw_only=True):
    """A task that ended on the client."""

    name: str
    state: int
    exit_status: int
    cpu_seconds: float
    wall_seconds: float
    memory_bytes: int
    stderr: str  # what the program wrote there
    message: str  # what the client has to say
    files: list[ReportedFile]

    @property
    def is_success(self) -> bool:
        """In the client's eyes, which do not see whether its uploads arrived."""
        return self.state == STATE_DONE and self.exit_status == 0


class HostInfo(Struct, frozen=True, kw_only=True):
    """What the client says of its machine."""

    name: str = ""
    cpid: str = ""
    cpus: int = 1
    vendor: str = ""
    model: str = ""
    flops: float = 1e9
    iops: float = 1e9
    memory_bytes: int = 0
    disk_total_bytes: int = 0
    disk_free_bytes: int = 0
    os_name: str = ""
    os_version: str = ""
    timezone: int = 0
    docker_version: str = ""  # said by clients from 8.1 on


class Preferences(Struct, frozen=True, kw_only=True):
    """What of the preferences in force bears on which jobs fit."""

    cpus_percent: float = 100.0
    memory_busy_percent: float = 50.0
    memory_idle_percent: float = 90.0
    disk_used_gb: float = 0.0  # 0: no limit
    disk_used_percent: float = 90.0
    disk_free_gb: float = 0.1


class Trickle(Struct, frozen=True, kw_only=True):
    """A message that a running task sent up."""

    result_name: str
    sent_at: int
    variety: str
    text: str


class SchedulerRequest(Struct, frozen=True, kw_only=True):
    """One call of a client."""

    authenticator: str
    host_id: int
    seqno: int
    client_version: tuple[int, int, int]
    platforms: list[str]
    code_sign_key: str
    dont_send_work: bool
    work_seconds: float
    idle_cpus: float
    share: float  # of the client's computing that is this site's
    host: HostInfo
    preferences: Preferences
    disk_used_bytes: int  # by BOINC
    results: list[ReportedResult]
    others: list[str] | None  # tasks it has and does not report; None: it did not say
    sticky_files: list[str]
    trickles: list[Trickle]
    allow_multiple_clients: bool
    results_truncated: bool
    global_preferences: str  # its master copy, as it stands
    global_preferences_at: float
    email_hash_of_preferences: str


_STDERR_END = re.compile(r"(?:\]\]>\s*)?</stderr_out>\s*(?=<file_info>|</result>|<final|\Z)")


def read_request(body: bytes) -> SchedulerRequest:
    """Read a request. Raises BadRequest for what is none; everything else that is odd is read as well as it can be."""
    data = body.decode("utf-8", "replace")
    if "<scheduler_request>" not in data:
        raise BadRequest("there is no <scheduler_request> in it")
    results, rest = _take_results(data)
    authenticator = text(rest, "authenticator")
    platform = text(rest, "platform_name")
    if not authenticator:
        raise BadRequest("there is no <authenticator> in it")
    preferences = inside(rest, "working_global_preferences") or ""
    master = rest.replace(preferences, "", 1) if preferences else rest
    others = inside(rest, "other_results")
    platforms = [platform] if platform else []
    platforms += [text(block, "name") for block in blocks(rest, "alt_platform")]
    usage = inside(rest, "disk_usage") or ""
    host = inside(rest, "host_info") or ""
    return SchedulerRequest(
        authenticator=authenticator,
        host_id=whole(rest, "hostid"),
        seqno=whole(rest, "rpc_seqno"),
        client_version=(
            whole(rest, "core_client_major_version"),
            whole(rest, "core_client_minor_version"),
            whole(rest, "core_client_release"),
        ),
        platforms=platforms[:16],
        code_sign_key=(inside(rest, "code_sign_key") or "").strip(),
        dont_send_work=flag(rest, "dont_send_work"),
        work_seconds=max(number(rest, "cpu_req_secs"), number(rest, "work_req_seconds")),
        idle_cpus=number(rest, "cpu_req_instances"),
        share=number(rest, "resource_share_fraction", 1.0),
        host=_host(host),
        preferences=_preferences(preferences),
        disk_used_bytes=whole(usage, "d_boinc_used_total"),
        results=results,
        others=None if others is None else [text(block, "name") for block in blocks(others, "other_result")],
        sticky_files=_sticky(rest),
        trickles=[_trickle(block) for block in blocks(rest, "msg_from_host")],
        allow_multiple_clients=flag(rest, "allow_multiple_clients"),
        results_truncated=flag(rest, "results_truncated"),
        global_preferences=(inside(master, "global_preferences") or "").strip(),
        global_preferences_at=number(inside(master, "global_preferences") or "", "mod_time"),
        email_hash_of_preferences=text(rest, "global_prefs_source_email_hash"),
    )


def _take_results(data: str) -> tuple[list[ReportedResult], str]:
    """Cut the reports out, so that nothing a program wrote to its stderr is taken for part of the request."""
    results: list[ReportedResult] = []
    rest: list[str] = []
    place = 0
    while (begin := data.find("<result>", place)) >= 0:
        rest.append(data[place:begin])
        stderr = data.find("<stderr_out>", begin)
        end = data.find("</result>", begin)
        written = ""
        head = data[begin : end if end >= 0 else len(data)]
        tail = ""
        if 0 <= stderr < (end if end >= 0 else len(data)):
            match = _STDERR_END.search(data, stderr)
            stop = match.start() if match else len(data)
            written, head = data[stderr:stop], data[begin:stderr]
            after = match.end() if match else len(data)
            end = data.find("</result>", after)
            tail = data[after : end if end >= 0 else len(data)]
        results.append(_result(head + tail, written))
        place = end + len("</result>") if end >= 0 else len(data)
    rest.append(data[place:])
    return results, "".join(rest)


def _result(data: str, written: str) -> ReportedResult:
    own = data.partition("<file_info>")[0]
    stderr = inside(written, "stderr_txt")
    if stderr is None:
        # The client cuts long ones anywhere.
        stderr = written.rpartition("<stderr_txt>")[2] if "<stderr_txt>" in written else ""
    return ReportedResult(
        name=text(own, "name"),
        state=whole(own, "state"),
        exit_status=whole(own, "exit_status"),
        cpu_seconds=max(0.0, number(own, "final_cpu_time")),
        wall_seconds=max(0.0, number(own, "final_elapsed_time")),
        memory_bytes=max(0, whole(own, "final_peak_working_set_size")),
        stderr=unescape(stderr.strip("\n")),
        message=text(written, "message"),
        files=[
            ReportedFile(
                name=text(block, "name"),
                size_bytes=whole(block, "nbytes"),
                md5=text(block, "md5_cksum").lower(),
                error=text(block, "error_msg"),
            )
            for block in blocks(data, "file_info")
        ],
    )


def _host(data: str) -> HostInfo:
    return HostInfo(
        name=text(data, "domain_name")[:120],
        cpid=text(data, "host_cpid")[:64],
        cpus=min(max(1, whole(data, "p_ncpus", 1)), 4096),
        vendor=text(data, "p_vendor")[:120],
        model=text(data, "p_model")[:240],
        flops=max(1e6, number(data, "p_fpops", 1e9)),
        iops=max(1e6, number(data, "p_iops", 1e9)),
        memory_bytes=max(0, whole(data, "m_nbytes")),
        disk_total_bytes=max(0, whole(data, "d_total")),
        disk_free_bytes=max(0, whole(data, "d_free")),
        os_name=text(data, "os_name")[:120],
        os_version=text(data, "os_version")[:240],
        timezone=whole(data, "timezone"),
        docker_version=text(data, "docker_version")[:120],
    )


def _preferences(data: str) -> Preferences:
    return Preferences(
        cpus_percent=number(data, "max_ncpus_pct", 100.0) or 100.0,
        memory_busy_percent=number(data, "ram_max_used_busy_pct", 50.0),
        memory_idle_percent=number(data, "ram_max_used_idle_pct", 90.0),
        disk_used_gb=number(data, "disk_max_used_gb"),
        disk_used_percent=number(data, "disk_max_used_pct", 90.0),
        disk_free_gb=number(data, "disk_min_free_gb", 0.1),
    )


def _sticky(data: str) -> list[str]:
    # At the top level only sticky files are left: those of reports were cut out with them.
    return [text(block, "name") for block in blocks(data, "file_info") if number(block, "status", 1) == 1]


def _trickle(data: str) -> Trickle:
    return Trickle(
        result_name=text(data, "result_name"),
        sent_at=whole(data, "time"),
        variety=text(data, "variety")[:120],
        text=(inside(data, "text") or data.partition("</time>")[2]).strip("\n")[:65_536],
    )


# --- replies ------------------------------------------------------------------------------------------------------


class FileInfo(Struct, frozen=True, kw_only=True):
    """A file the client is to fetch. Its name means these bytes for ever."""

    name: str
    url: str
    size_bytes: int
    md5: str
    executable: bool = False
    signature: str = ""
    sticky: bool = False


class FileRef(Struct, frozen=True, kw_only=True):
    """A file as a program sees it."""

    name: str
    open_name: str = ""
    main_program: bool = False
    copy_file: bool = False
    optional: bool = False


class AppVersion(Struct, frozen=True, kw_only=True):
    """A build of an app."""

    app: str
    version: int
    platform: str
    plan_class: str = ""
    cpus: float = 1.0
    flops: float = 1e9
    command_line: str = ""
    files: tuple[FileRef, ...] = ()
    infos: tuple[FileInfo, ...] = ()
    needs_network: bool = False


class OutputFile(Struct, frozen=True, kw_only=True):
    """A file a task may bring back."""

    name: str
    open_name: str
    most_bytes: int
    optional: bool = True
    copy_file: bool = False


class Work(Struct, frozen=True, kw_only=True):
    """A task that is sent: BOINC's workunit and result in one."""

    name: str  # the task's
    job: str  # the job's
    version: AppVersion
    flops_estimate: float
    flops_bound: float
    memory_bytes: int
    disk_bytes: int
    command_line: str
    inputs: tuple[FileRef, ...]
    infos: tuple[FileInfo, ...]
    outputs: tuple[OutputFile, ...]
    deadline: int


class Account(Struct, frozen=True, kw_only=True):
    """What the client shows of the account, and keeps."""

    user_id: int
    user_name: str
    created_at: float
    total_credit: float = 0.0
    average_credit: float = 0.0
    email_hash: str = ""
    cross_project_id: str = ""
    team_id: int = 0
    team_name: str = ""
    project_preferences: str = ""


class Reply(Struct, kw_only=True):
    """The answer to a call."""

    master_url: str
    project_name: str
    request_delay: float = 0.0
    next_rpc_delay: float = 0.0
    messages: list[tuple[str, str]] = []  # priority ("low", "high", "notice") and text
    account: Account | None = None
    host_id: int = 0  # only where the client does not know it yet
    host_credit: tuple[float, float] | None = None
    host_created_at: float = 0.0
    venue: str = ""
    global_preferences: str = ""
    code_sign_key: str = ""
    code_sign_key_signature: str = ""
    app_names: dict[str, str] = {}
    work: list[Work] = []
    acknowledged: list[str] = []
    aborted: list[str] = []
    aborted_if_not_started: list[str] = []
    deleted_files: list[str] = []
    message_ack: bool = False
    is_down: bool = False
    trickles_down: list[tuple[str, int, str]] = []  # result, time, lines


def write_reply(reply: Reply, upload_url: str) -> bytes:
    """The reply as the client takes it."""
    parts = [
        "<scheduler_reply>\n",
        f"<scheduler_version>{SCHEDULER_VERSION}</scheduler_version>\n<dont_use_dcf/>\n",
        element("master_url", reply.master_url),
    ]
    if reply.request_delay:
        parts.append(element("request_delay", float(reply.request_delay)))
    if reply.next_rpc_delay:
        parts.append(element("next_rpc_delay", float(reply.next_rpc_delay)))
    parts += [f'<message priority="{priority}">{escape(_cut(words))}</message>\n' for priority, words in reply.messages]
    parts.append(element("project_name", reply.project_name))
    if reply.is_down:
        parts.append("<project_is_down/>\n")
    parts += _who(reply)
    if reply.message_ack:
        parts.append("<message_ack/>\n")
    parts += [f"<result_ack>\n<name>{escape(name)}</name>\n</result_ack>\n" for name in reply.acknowledged]
    parts += [f"<result_abort>\n<name>{escape(name)}</name>\n</result_abort>\n" for name in reply.aborted]
    parts += [
        f"<result_abort_if_not_started>\n<name>{escape(name)}</name>\n</result_abort_if_not_started>\n"
        for name in reply.aborted_if_not_started
    ]
    parts += [f"<delete_file_info>{escape(name)}</delete_file_info>\n" for name in reply.deleted_files]
    for result, at, lines in reply.trickles_down:
        parts.append(
            f"<trickle_down>\n<result_name>{escape(result)}</result_name>\n<time>{at}</time>\n{lines}\n</trickle_down>\n"
        )
    if reply.work:
        parts.append(_work(reply, upload_url))
    if reply.code_sign_key:
        parts.append(f"<code_sign_key>\n{reply.code_sign_key.strip()}\n</code_sign_key>\n")
    if reply.code_sign_key_signature:
        parts.append(
            f"<code_sign_key_signature>\n{reply.code_sign_key_signature.strip()}\n</code_sign_key_signature>\n"
        )
    parts.append("</scheduler_reply>\n")
    return "".join(parts).encode()


def _who(reply: Reply) -> list[str]:
    """The account and the host, as the site knows them."""
    parts = [] if reply.account is None else [_account(reply.account)]
    if reply.host_id:
        parts.append(element("hostid", reply.host_id))
    if reply.host_credit is not None:
        total, average = reply.host_credit
        parts += [element("host_total_credit", float(total)), element("host_expavg_credit", float(average))]
        parts += [element("host_venue", reply.venue), element("host_create_time", int(reply.host_created_at))]
    if reply.global_preferences:
        parts.append(f"<global_preferences>\n{reply.global_preferences}\n</global_preferences>\n")
    return parts


def _cut(words: str) -> str:
    return words.encode()[:MOST_MESSAGE_BYTES].decode(errors="ignore")


def _account(account: Account) -> str:
    parts = [
        element("userid", account.user_id),
        element("user_name", account.user_name),
        element("user_total_credit", float(account.total_credit)),
        element("user_expavg_credit", float(account.average_credit)),
        element("user_create_time", int(account.created_at)),
    ]
    if account.email_hash:
        parts.append(element("email_hash", account.email_hash))
    if account.cross_project_id:
        parts.append(element("cross_project_id", account.cross_project_id))
    parts += [element("teamid", account.team_id), element("team_name", account.team_name)]
    if account.project_preferences:
        parts.append(f"<project_preferences>\n{account.project_preferences}\n</project_preferences>\n")
    return "".join(parts)


def _work(reply: Reply, upload_url: str) -> str:
    parts: list[str] = []
    files: set[str] = set()
    versions: set[tuple[str, int, str, str]] = set()

    def add_files(infos: Sequence[FileInfo]) -> None:
        for info in infos:
            if info.name not in files:
                files.add(info.name)
                parts.append(_file(info))

    for app in dict.fromkeys(work.version.app for work in reply.work):
        parts.append(
            f"<app>\n<name>{app}</name>\n"
            + element("user_friendly_name", reply.app_names.get(app, app))
            + "<non_cpu_intensive>0</non_cpu_intensive>\n<fraction_done_exact>0</fraction_done_exact>\n</app>\n"
        )
    jobs: set[str] = set()
    for work in reply.work:
        version = work.version
        key = (version.app, version.version, version.platform, version.plan_class)
        if key not in versions:
            versions.add(key)
            add_files(version.infos)
            parts.append(_version(version))
        if work.job not in jobs:
            jobs.add(work.job)
            add_files(work.infos)
            parts.append(_job(work))
        parts.append(_result_sent(work, upload_url))
    return "".join(parts)


def _file(info: FileInfo) -> str:
    marks = "<executable/>\n" if info.executable else ""
    if info.sticky:
        marks += "<sticky/>\n<no_delete/>\n"
    if info.signature:
        marks += f"<signature_required/>\n<file_signature>\n{info.signature.strip()}\n</file_signature>\n"
    return (
        f"<file_info>\n<name>{info.name}</name>\n<url>{escape(info.url)}</url>\n<nbytes>{info.size_bytes}</nbytes>\n"
        f"<md5_cksum>{info.md5}</md5_cksum>\n{marks}</file_info>\n"
    )


def _ref(ref: FileRef) -> str:
    marks = f"<open_name>{escape(ref.open_name)}</open_name>\n" if ref.open_name else ""
    marks += "<main_program/>\n" if ref.main_program else ""
    marks += "<copy_file/>\n" if ref.copy_file else ""
    marks += "<optional/>\n" if ref.optional else ""
    return f"<file_ref>\n<file_name>{ref.name}</file_name>\n{marks}</file_ref>\n"


def _version(version: AppVersion) -> str:
    return (
        f"<app_version>\n<app_name>{version.app}</app_name>\n<version_num>{version.version}</version_num>\n"
        f"<platform>{version.platform}</platform>\n<plan_class>{version.plan_class}</plan_class>\n"
        f"<avg_ncpus>{version.cpus:.6f}</avg_ncpus>\n<flops>{version.flops:.6f}</flops>\n"
        "<api_version>7.20.5</api_version>\n"
        + (element("cmdline", version.command_line) if version.command_line else "")
        + ("<needs_network/>\n" if version.needs_network else "")
        + "".join(map(_ref, version.files))
        + "</app_version>\n"
    )


def _job(work: Work) -> str:
    return (
        f"<workunit>\n<name>{work.job}</name>\n<app_name>{work.version.app}</app_name>\n"
        f"<rsc_fpops_est>{work.flops_estimate:.6f}</rsc_fpops_est>\n"
        f"<rsc_fpops_bound>{work.flops_bound:.6f}</rsc_fpops_bound>\n"
        f"<rsc_memory_bound>{work.memory_bytes}.000000</rsc_memory_bound>\n"
        f"<rsc_disk_bound>{work.disk_bytes}.000000</rsc_disk_bound>\n"
        f"<command_line>\n{escape(work.command_line)}\n</command_line>\n"
        + "".join(map(_ref, work.inputs))
        + "</workunit>\n"
    )


def _result_sent(work: Work, upload_url: str) -> str:
    infos = "".join(
        f"<file_info>\n<name>{output.name}</name>\n<generated_locally/>\n<upload_when_present/>\n"
        f"<max_nbytes>{output.most_bytes}</max_nbytes>\n<url>{escape(upload_url)}</url>\n</file_info>\n"
        for output in work.outputs
    )
    refs = "".join(
        _ref(
            FileRef(name=output.name, open_name=output.open_name, optional=output.optional, copy_file=output.copy_file)
        )
        for output in work.outputs
    )
    version = work.version
    return (
        f"{infos}<result>\n<report_deadline>{work.deadline}</report_deadline>\n<wu_name>{work.job}</wu_name>\n"
        f"<name>{work.name}</name>\n{refs}<platform>{version.platform}</platform>\n"
        f"<version_num>{version.version}</version_num>\n<plan_class>{version.plan_class}</plan_class>\n"
        "<report_immediately/>\n</result>\n"
    )
