"""Names on BOINC's wire can be read back, and cannot be guessed."""

import pytest

from distributio.server.boinc_names import Marks, TaskName, job_name, read_task, task_name
from distributio.server.boinc_reports import last_words
from distributio.server.boinc_work import CannotSend, command_line

MARKS = Marks(b"secret")


@pytest.mark.parametrize("app", ["distributio", "a_b", "x-1.2"])
def test_a_task_is_read_back_from_its_name(app: str) -> None:
    name = task_name(app, "12.345", 3, 678)
    assert name.startswith(job_name(app, "12.345"))
    assert read_task(name) == TaskName(app, "12.345", 3, 678)


@pytest.mark.parametrize("name", ["", "x", "a_1_2_3", "a_1.1_2", "a_1.1_2_3_4x", "a/b_1.1_0_1", "a_1.1_0_" + "9" * 40])
def test_what_is_no_name_of_ours_is_none(name: str) -> None:
    assert read_task(name) is None


def test_an_output_is_read_back_and_a_guess_is_not() -> None:
    task = task_name("a", "1.1", 0, 5)
    name = MARKS.output(task, 1)
    assert MARKS.read_output(name) == (TaskName("a", "1.1", 0, 5), 1)
    assert MARKS.read_output(name.replace("_5_", "_6_")) is None
    assert Marks(b"another").read_output(name) is None
    assert MARKS.read_output(f"{task}_0") is None


def test_a_download_is_for_those_who_were_told() -> None:
    digits = "a" * 64
    assert MARKS.is_download(MARKS.mark("download", digits), digits)
    assert not MARKS.is_download(MARKS.mark("download", digits), "b" * 64)
    assert not MARKS.is_download(MARKS.mark("output", digits), digits)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], ""),
        (["a", "--b=c d"], 'a "--b=c d"'),
        (["", "'x"], '"" "\'x"'),
        (['say "hi" now'], "'say \"hi\" now'"),
        (['a"b'], 'a"b'),
    ],
)
def test_words_are_written_as_clients_split_them(words: list[str], line: str) -> None:
    assert command_line(words) == line


@pytest.mark.parametrize("word", ["a\nb", 'it\'s "both" of them'])
def test_a_word_that_no_client_could_pass_on_is_refused(word: str) -> None:
    with pytest.raises(CannotSend):
        command_line([word])


def test_the_last_report_counts() -> None:
    first = '##distributio report {"outcome":"error"}'
    second = '##distributio report {"outcome":"success","exit_code":0}'
    words = last_words(f"noise\n{first}\n{second}\nmore")
    assert words is not None
    assert words.outcome == "success"
    assert last_words("nothing") is None
    assert last_words("##distributio report {broken") is None
