"""BOINC's messages are read however clients send them, and written to the letter."""

import pytest

from distributio.wire import boinc_accounts, boinc_files, boinc_scheduler, boinc_xml
from distributio.wire.boinc_scheduler import AppVersion, FileInfo, FileRef, OutputFile, Reply, Work

REQUEST = """<scheduler_request>
    <authenticator>ee4461e94d0dbbb508a7ef7c26d9b1bd</authenticator>
    <hostid>7</hostid>
    <rpc_seqno>3</rpc_seqno>
    <core_client_major_version>7</core_client_major_version>
    <core_client_minor_version>20</core_client_minor_version>
    <core_client_release>5</core_client_release>
    <work_req_seconds>1.000000</work_req_seconds>
    <cpu_req_secs>34560.000000</cpu_req_secs>
    <cpu_req_instances>2.000000</cpu_req_instances>
    <platform_name>x86_64-pc-linux-gnu</platform_name>
    <alt_platform>
        <name>i686-pc-linux-gnu</name>
    </alt_platform>
    <code_sign_key>
1024
ab
.
    </code_sign_key>
<working_global_preferences>
<global_preferences>
   <mod_time>0.000000</mod_time>
   <max_ncpus_pct>50.000000</max_ncpus_pct>
</global_preferences>
</working_global_preferences>
<global_preferences>
   <mod_time>5.000000</mod_time>
</global_preferences>
<host_info>
    <domain_name>Zoë</domain_name>
    <host_cpid>fe2b</host_cpid>
    <p_ncpus>2</p_ncpus>
    <p_fpops>nan</p_fpops>
    <m_nbytes>25276502016.000000</m_nbytes>
</host_info>
    <disk_usage>
        <d_boinc_used_total>69632.000000</d_boinc_used_total>
    </disk_usage>
%s
<file_info>
    <name>sticky</name>
    <status>1</status>
</file_info>
<other_results>
    <other_result>
        <name>distributio_1.1_0_5</name>
        <app_version>0</app_version>
    </other_result>
</other_results>
</scheduler_request>
"""
RESULT = """<result>
    <name>distributio_1.1_0_4</name>
    <final_cpu_time>0.060000</final_cpu_time>
    <final_elapsed_time>5.025171</final_elapsed_time>
    <exit_status>0</exit_status>
    <state>5</state>
    <final_peak_working_set_size>14639104</final_peak_working_set_size>
<stderr_out>
<core_client_version>7.20.5</core_client_version>
<![CDATA[
<stderr_txt>
%s
</stderr_txt>
]]>
</stderr_out>
<file_info>
    <name>out_0</name>
    <nbytes>7.000000</nbytes>
    <md5_cksum>a5b1e83cd0273aefdf9cca2994b97c77</md5_cksum>
</file_info>
</result>
"""


def test_a_request_is_read() -> None:
    request = boinc_scheduler.read_request((REQUEST % (RESULT % "hello")).encode())
    assert (request.host_id, request.seqno, request.client_version) == (7, 3, (7, 20, 5))
    assert request.platforms == ["x86_64-pc-linux-gnu", "i686-pc-linux-gnu"]
    assert (request.work_seconds, request.idle_cpus) == (34560.0, 2.0)
    assert request.code_sign_key == "1024\nab\n."
    assert request.host.name == "Zoë"
    assert request.host.flops == 1e9  # nan is no speed
    assert request.preferences.cpus_percent == 50.0
    assert request.global_preferences_at == 5.0
    assert request.others == ["distributio_1.1_0_5"]
    assert request.sticky_files == ["sticky"]
    (result,) = request.results
    assert result.is_success
    assert result.stderr == "hello"
    assert [(file.name, file.size_bytes) for file in result.files] == [("out_0", 7)]


@pytest.mark.parametrize(
    "written",
    [
        "a ]]> b",
        "]]>\n</stderr_out>",
        "<hostid>9</hostid> & <b",
        "</result><other_results></other_results>",
        "\x1b\x01\x00",
        "<authenticator>x",
        "<stderr_out>",
    ],
)
def test_what_a_program_wrote_is_not_taken_for_the_request(written: str) -> None:
    request = boinc_scheduler.read_request((REQUEST % (RESULT % written + RESULT % "second")).encode())
    assert request.host_id == 7
    assert request.others == ["distributio_1.1_0_5"]
    assert [result.name for result in request.results] == ["distributio_1.1_0_4"] * 2
    assert request.results[1].stderr == "second"
    assert all(len(result.files) == 1 for result in request.results)


def test_bytes_above_127_come_back() -> None:
    sent = "".join(f"&#{byte};" for byte in "Å — 漢".encode() if byte > 127)
    assert boinc_xml.unescape(sent) == "Å—漢"


def test_an_empty_list_of_tasks_is_not_the_same_as_none() -> None:
    said = REQUEST % ""
    begin, end = said.index("<other_results>"), said.index("</other_results>")
    empty = said[:begin] + "<other_results>\n" + said[end:]
    absent = said[:begin] + said[end + len("</other_results>") :]
    assert boinc_scheduler.read_request(empty.encode()).others == []
    assert boinc_scheduler.read_request(absent.encode()).others is None


@pytest.mark.parametrize("body", [b"", b"\xff\x00", b"<scheduler_request></scheduler_request>", b"<html>"])
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(boinc_scheduler.BadRequest):
        boinc_scheduler.read_request(body)


def a_work(name: str = "app_1.1_0_5", job: str = "app_1.1") -> Work:
    info = FileInfo(name="app_1.py", url="http://127.0.0.1:1/boinc/x?a&b", size_bytes=3, md5="aa", signature="s")
    version = AppVersion(
        app="app",
        version=1,
        platform="x86_64-pc-linux-gnu",
        files=(FileRef(name="app_1.py", main_program=True),),
        infos=(info,),
    )
    return Work(
        name=name,
        job=job,
        version=version,
        flops_estimate=1e12,
        flops_bound=1e15,
        memory_bytes=100,
        disk_bytes=100,
        command_line="--a <b> & 'c'",
        inputs=(FileRef(name="in_1", open_name="in"),),
        infos=(FileInfo(name="in_1", url="http://127.0.0.1:1/y", size_bytes=1, md5="bb", sticky=True),),
        outputs=(OutputFile(name="app_1.1_0_5_r1_0", open_name="out", most_bytes=10),),
        deadline=1_800_000_000,
    )


def test_a_reply_is_written_so_that_a_client_takes_it() -> None:
    reply = Reply(master_url="http://127.0.0.1:1/", project_name="A & B", work=[a_work(), a_work("app_1.1_1_6")])
    reply.messages = [("notice", "x" * 3000)]
    reply.acknowledged, reply.aborted = ["r1"], ["r2"]
    text = boinc_scheduler.write_reply(reply, "http://127.0.0.1:1/boinc/file_upload_handler").decode()
    assert text.startswith("<scheduler_reply>\n")
    assert text.endswith("</scheduler_reply>\n")
    assert "<project_name>A &amp; B</project_name>" in text
    assert text.count("<app_version>") == text.count("<workunit>") == text.count("<app>") == 1
    assert text.count("<result>") == 2
    assert "<command_line>\n--a &lt;b&gt; &amp; 'c'\n</command_line>" in text
    assert "<api_version>" in text  # without it a task cannot be suspended
    assert "e+" not in text
    assert max(map(len, text.splitlines())) < 1100
    assert "<hostid>" not in text  # sent again, it would reset the client's count of calls


def test_an_upload_is_read_up_to_its_bytes() -> None:
    head = (
        b"<data_server_request>\n<file_upload>\n<file_info>\n<name>r_0</name>\n<xml_signature>\n</xml_signature>\n"
        b"<max_nbytes>1000</max_nbytes>\n</file_info>\n<nbytes>7</nbytes>\n<md5_cksum>64C3</md5_cksum>\n"
        b"<offset>2</offset>\n<data>\nhello"
    )
    upload = boinc_files.read_header(head)
    assert isinstance(upload, boinc_files.Upload)
    assert (upload.name, upload.size_bytes, upload.offset, upload.md5) == ("r_0", 7, 2, "64c3")
    assert head[upload.data_at :] == b"hello"
    assert boinc_files.read_header(head[:60]) is None
    asked = b"<data_server_request>\n<get_file_size>r_0</get_file_size>\n</data_server_request>"
    assert boinc_files.read_header(asked) == boinc_files.SizeQuery("r_0")


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a b", "a" * 300, "é", "a\nb"])
def test_a_name_that_leaves_its_folder_is_refused(name: str) -> None:
    assert not boinc_files.is_safe_name(name)


def test_the_link_of_the_master_page_stands_alone_on_a_short_line() -> None:
    page = boinc_accounts.master_page("A <b>", "http://127.0.0.1:1/boinc/scheduler").decode()
    assert '<link rel="boinc_scheduler" href="http://127.0.0.1:1/boinc/scheduler">' in page.splitlines()
    assert all(len(line) < 250 for line in page.splitlines())


@pytest.mark.parametrize(
    "document",
    [
        b'<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        b"<a>" * 100 + b"</a>" * 100,
        b"<a><b></a>",
        b"<a>" + b"<b/>" * 200_001 + b"</a>",
        b"\x00",
    ],
)
def test_a_document_that_could_do_harm_is_refused(document: bytes) -> None:
    with pytest.raises(boinc_xml.BadDocument):
        boinc_xml.read_document(document)


def test_a_document_is_read_with_its_order() -> None:
    top = boinc_xml.read_document(b'<?xml version="1.0"?>\n<batch><job><name> a </name></job><job><x/></job></batch>')
    assert [job.value("name") for job in top.all("job")] == ["a", ""]
    assert top.all("job")[1].flag("x")
    assert len(boinc_xml.read_document(b"<input/><workunit/>").children) == 2
