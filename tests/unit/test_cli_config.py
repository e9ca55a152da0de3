"""The right site is spoken to as the right person, and what is stored is nobody else's to read."""

import stat
from pathlib import Path

import pytest

from distributio.cli import config
from distributio.cli.config import Choice, Known, Sites
from distributio.cli.exits import Stop

HOME = "http://127.0.0.1:8900"
FAR = "https://grid.example/site"


def test_what_is_stored_is_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "config"
    file = config.store(folder, HOME, Known(token="dio_1"), make_default=False)
    config.store(folder, FAR + "/", Known(token='dio_"2"\\ü', project="lab"), make_default=True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert config.load(folder) == Sites(
        default=FAR, sites={HOME: Known(token="dio_1"), FAR: Known(token='dio_"2"\\ü', project="lab")}
    )


def test_a_new_token_replaces_the_old_one(tmp_path: Path) -> None:
    config.store(tmp_path, HOME, Known(token="old"), make_default=True)
    config.store(tmp_path, HOME, Known(token="new"), make_default=False)
    assert config.load(tmp_path) == Sites(default=HOME, sites={HOME: Known(token="new")})


KNOWN = Sites(default=FAR, sites={HOME: Known(token="home"), FAR: Known(token="far", project="lab")})


@pytest.mark.parametrize(
    ("sites", "environment", "url", "project", "expected"),
    [
        (Sites(), {}, "", "", Choice(url=HOME, token="", project="")),
        (KNOWN, {}, "", "", Choice(url=FAR, token="far", project="lab")),
        (KNOWN, {}, HOME + "/", "", Choice(url=HOME, token="home", project="")),
        (KNOWN, {"DISTRIBUTIO_URL": HOME}, "", "", Choice(url=HOME, token="home", project="")),
        (KNOWN, {"DISTRIBUTIO_URL": HOME}, FAR, "x", Choice(url=FAR, token="far", project="x")),
        (
            KNOWN,
            {"DISTRIBUTIO_TOKEN": "t", "DISTRIBUTIO_PROJECT": "p"},
            "",
            "",
            Choice(url=FAR, token="t", project="p"),
        ),
        (KNOWN, {}, "http://other.example", "", Choice(url="http://other.example", token="", project="")),
    ],
)
def test_option_then_environment_then_what_is_stored(
    sites: Sites, environment: dict[str, str], url: str, project: str, expected: Choice
) -> None:
    assert config.choose(sites, environment, url, project) == expected


def test_an_address_without_a_scheme_is_explained() -> None:
    with pytest.raises(Stop, match="http://"):
        config.choose(Sites(), {}, "grid.example")


def test_a_broken_file_says_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "sites.toml").write_text("sites = 3")
    with pytest.raises(Stop, match="log in again"):
        config.load(tmp_path)


def test_last_is_remembered_by_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTRIBUTIO_CONFIG", str(tmp_path))
    assert config.last(HOME) is None
    config.remember_last(HOME, 7)
    config.remember_last(FAR, 3)
    config.remember_last(HOME, 8)
    assert (config.last(HOME), config.last(FAR)) == (8, 3)
