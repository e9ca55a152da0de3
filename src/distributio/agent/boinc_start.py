"""The first lines of the program for BOINC clients: unpack it beside itself, once, and begin.

Any Python 3 must be able to read this file, to say that it is too old for the rest.
"""

import enum
import os
import shutil
import sys
import tempfile
import zipfile

OLDEST = (3, 10)
INIT_FAILURE = 206


def give_up(words: str) -> None:
    """Say why this machine cannot run the job, and end as a BOINC program does."""
    words = words.replace('"', "'")
    report = '{"outcome":"abandoned","cause":"runner-missing","detail":"' + words + '"}'
    sys.stderr.write("##distributio report " + report + "\n")
    with open("boinc_finish_called", "w") as mark:
        mark.write(str(INIT_FAILURE) + "\n")
    sys.stderr.flush()
    os._exit(INIT_FAILURE)


def unpack(program: str) -> str:
    """The folder with the program's modules."""
    folder = os.path.splitext(program)[0] + ".d"
    if not os.path.isdir(folder):
        partial = tempfile.mkdtemp(dir=os.path.dirname(program), prefix="unpacking_")
        with zipfile.ZipFile(program) as archive:
            archive.extractall(partial)
        try:
            os.rename(partial, folder)
        except OSError:  # another task was quicker
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def main() -> None:
    """Begin."""
    if sys.version_info < OLDEST:
        give_up("it needs Python 3.10 or newer; here is " + sys.version.split()[0])
    if not hasattr(enum, "StrEnum"):  # new in Python 3.11

        class StrEnum(str, enum.Enum):  # noqa: UP042  # it is what is missing
            __str__ = str.__str__

        enum.StrEnum = StrEnum  # type: ignore[misc, assignment]
    program = os.path.abspath(sys.argv[0])
    sys.path[0] = unpack(program)
    from distributio.agent import boinc_task

    sys.exit(boinc_task.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
