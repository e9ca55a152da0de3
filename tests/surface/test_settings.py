"""Every setting has a default and a sentence, is on its page, and is understood or named when it is not."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from distributio.cli import service_pages
from distributio.server import settings as module
from distributio.server.settings import DESCRIPTIONS, Settings, SettingsError

ROOT = Path(__file__).parents[2]
FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in DESCRIPTIONS:
        monkeypatch.delenv(f"DISTRIBUTIO_{name.upper()}", raising=False)
    monkeypatch.delenv("DISTRIBUTIO_SITE_URL", raising=False)


@pytest.mark.parametrize("name", FIELDS)
def test_a_setting_has_a_default_a_sentence_and_a_row(name: str) -> None:
    assert FIELDS[name].default is not msgspec.NODEFAULT or FIELDS[name].default_factory is not msgspec.NODEFAULT
    assert DESCRIPTIONS[name].endswith(".")
    page = (ROOT / "docs/reference/settings.md").read_text()
    assert f"| `{name}` |" in page
    assert DESCRIPTIONS[name] in page


def test_nothing_is_described_that_is_not_there() -> None:
    assert set(DESCRIPTIONS) == set(FIELDS)
    assert service_pages.settings() == (ROOT / "docs/reference/settings.md").read_text()


def test_the_defaults_are_allowed(tmp_path: Path) -> None:
    assert module.read(tmp_path, {}) == msgspec.structs.replace(Settings(), data=tmp_path)


def test_the_later_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "distributio.toml").write_text('name = "file"\nlog_level = "debug"\nlisten = "127.0.0.1:1"\n')
    monkeypatch.setenv("DISTRIBUTIO_NAME", "variable")
    monkeypatch.setenv("DISTRIBUTIO_LISTEN", "127.0.0.1:2")
    found = module.read(tmp_path, {"listen": "127.0.0.1:3", "url": None})
    assert (found.name, found.log_level, found.listen) == ("variable", "debug", "127.0.0.1:3")


def test_the_command_lines_variable_for_its_site_is_not_the_sites_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTRIBUTIO_URL", "http://elsewhere")
    assert module.site_url(module.read(tmp_path, {})) == "http://127.0.0.1:8900"
    monkeypatch.setenv("DISTRIBUTIO_SITE_URL", "https://grid.example/x/")
    assert module.site_url(module.read(tmp_path, {})) == "https://grid.example/x"


def test_text_from_the_environment_becomes_what_it_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIBUTIO_IMPORT_PLATFORMS", "linux/amd64, linux/riscv64")
    monkeypatch.setenv("DISTRIBUTIO_POLL_SECONDS", "2.5")
    monkeypatch.setenv("DISTRIBUTIO_MAX_JOBS_PER_BATCH", "12")
    found = module.read(tmp_path, {})
    assert found.import_platforms == ["linux/amd64", "linux/riscv64"]
    assert (found.poll_seconds, found.max_jobs_per_batch) == (2.5, 12)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"colour": "red"}, "colour"),
        ({"processes": 0}, "processes"),
        ({"poll_seconds": 61}, "poll_seconds"),
        ({"max_body_bytes": "large"}, "max_body_bytes"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path: Path, values: dict[str, Any], names: str) -> None:
    with pytest.raises(SettingsError, match=names):
        module.read(tmp_path, values)


@pytest.mark.parametrize("listen", ["", "x", ":80", "127.0.0.1:", "127.0.0.1:99999", "127.0.0.1:x", "127.0.0.1:²"])
def test_an_address_is_a_host_and_a_port(listen: str) -> None:
    with pytest.raises(SettingsError, match="ADDRESS:PORT"):
        module.address(Settings(listen=listen))


def test_addresses_of_both_kinds_are_read() -> None:
    assert module.address(Settings(listen="[::1]:8900")) == ("::1", 8900)
    assert module.address(Settings(listen="localhost:1")) == ("localhost", 1)
