"""The pages in a real Chromium: signing in, watching work live, the keyboard, dark and light, narrow and wide."""

import base64
import os
import shutil
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from distributio.wire.native import JobChoice, Limits, Spec
from sites import DISTRIBUTIO, RunningSite, wait_for

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

SWITCHES = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--window-size=1200,900",
)  # fmt: skip


class Chromium:
    """A browser with a person before it."""

    def __init__(self, site: RunningSite, folder: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = _program("chromium")
        for switch in (*SWITCHES, f"--user-data-dir={folder / 'profile'}"):
            options.add_argument(switch)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.site = site
        self.service = Service(_program("chromedriver"), log_output=subprocess.DEVNULL)
        self.driver = webdriver.Chrome(options=options, service=self.service)

    def open(self, path: str) -> None:
        """Go to a page."""
        self.driver.get(self.site.url + path)

    def sign_in(self, token: str) -> None:
        """Paste the token, press Enter."""
        self.open("/login")
        self.driver.find_element(By.ID, "token").send_keys(token, Keys.ENTER)
        wait_for(lambda: self.path == "/", "signing in")

    @property
    def path(self) -> str:
        """Where the browser is."""
        return self.driver.current_url.removeprefix(self.site.url)

    def text(self, selector: str = "main") -> str:
        """What is read in the first such element."""
        try:
            return self.driver.find_element(By.CSS_SELECTOR, selector).text
        except (NoSuchElementException, StaleElementReferenceException):
            return ""  # it was replaced this very moment: whoever waits for it looks again

    def until(self, selector: str, words: str) -> None:
        """Wait for words to appear by themselves."""
        wait_for(lambda: words in self.text(selector), f"{words!r} in {selector} of {self.path}")

    def look(self, *, dark: bool = False, width: int = 1200) -> None:
        """Look with these eyes."""
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def brightness(self) -> float:
        """The mean of all samples of a screenshot, 0 to 255."""
        clip = {"x": 0, "y": 0, "width": 390, "height": 900, "scale": 0.1}
        taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png", "clip": clip})
        return _mean_of_png(base64.b64decode(taken["data"]))

    def complaints(self) -> list[str]:
        """What the browser has to say against the page: errors of scripts, refused contents."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def close(self) -> None:
        """Shut the browser."""
        self.driver.quit()


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is not installed: apt-get install chromium chromium-driver"
    return found


def _mean_of_png(data: bytes) -> float:
    """The mean of a PNG's colour samples, eight bits each."""
    place, packed = 8, b""
    while place < len(data):
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + length]
        if kind == b"IHDR":
            width, height = int.from_bytes(body[:4], "big"), int.from_bytes(body[4:8], "big")
            channels = {2: 3, 6: 4}[body[9]]
        packed += body if kind == b"IDAT" else b""
        place += 12 + length
    raw, stride = zlib.decompress(packed), width * channels
    before, total = bytes(stride), 0
    for start in range(0, len(raw), stride + 1):
        before = _unfiltered(raw[start], raw[start + 1 : start + 1 + stride], before, channels)
        total += sum(sum(before[channel::channels]) for channel in range(3))
    return total / (3 * width * height)


def _unfiltered(kind: int, packed: bytes, above: bytes, step: int) -> bytes:
    """A row of a PNG, whose samples are told by what they differ by from their neighbours'."""
    line = bytearray(packed)
    for place, value in enumerate(packed):
        left, corner = (line[place - step], above[place - step]) if place >= step else (0, 0)
        up = above[place]
        nearest = min((left, up, corner), key=lambda each: abs(left + up - corner - each))
        line[place] = (value + (0, left, up, (left + up) // 2, nearest)[kind]) & 255
    return bytes(line)


@pytest.fixture(scope="module")
def chromium(shared_site: RunningSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One browser for the module's tests, with the operator signed in."""
    os.environ["SE_OFFLINE"] = "true"  # selenium downloads nothing
    browser = Chromium(shared_site, tmp_path_factory.mktemp("chromium"))
    try:
        browser.sign_in(shared_site.operator_token)
        yield browser
    finally:
        browser.close()


@pytest.fixture(scope="module")
def host(shared_site: RunningSite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real agent with the fake runner; its name."""
    folder = tmp_path_factory.mktemp("host")
    words = ["--data", str(folder / "data")]
    attach = [
        *DISTRIBUTIO,
        "host",
        "attach",
        shared_site.url,
        "--runner",
        "fake",
        "--name",
        "desk",
        "--cpus",
        "2",
        *words,
    ]
    subprocess.run(attach, env=shared_site.environment, check=True, timeout=30, capture_output=True)
    with (folder / "agent.log").open("wb") as log:
        agent = subprocess.Popen(
            [*DISTRIBUTIO, "host", "run", *words], env=shared_site.environment, stdout=log, stderr=log
        )
    yield "desk"
    agent.terminate()
    try:
        agent.wait(15)
    except subprocess.TimeoutExpired:
        agent.kill()
        agent.wait()


def _spec(*command: str) -> Spec:
    return Spec(runner="fake", command=list(command), limits=Limits(cpus=0.1, memory_bytes=16 << 20))


def test_a_batch_runs_live_to_its_end(chromium: Chromium, host: str) -> None:
    spec = _spec("echo", "hello", ";", "sleep", "0.5", ";", "exit", "{code}")
    jobs = [JobChoice(variables={"code": code}) for code in "000003"]
    number = chromium.site.operator().submit(spec=spec, name="live", jobs=jobs)
    chromium.open(f"/batches/{number}")
    marked = "window.marked = true; return window.marked"
    assert chromium.driver.execute_script(marked)
    chromium.until("#state", "ended")
    chromium.until("#progress", "6 of 6 jobs over")
    chromium.until("#failures", "Exit code 3.")
    chromium.until("#actions", "Run 1 failed again")
    chromium.until("#jobs", "done")
    assert chromium.driver.execute_script("return window.marked"), "the page was loaded again"
    assert chromium.driver.title.startswith(f"Batch {number}")
    assert "fill-failed" in chromium.driver.find_element(By.CSS_SELECTOR, "#progress svg").get_attribute("innerHTML")
    chromium.driver.find_element(By.CSS_SELECTOR, "#actions button").click()
    wait_for(lambda: chromium.path == f"/batches/{number + 1}", "the batch of those that failed")
    assert not chromium.complaints()


def test_a_log_comes_while_it_is_written(chromium: Chromium, host: str) -> None:
    spec = _spec(
        "echo", "one", ";", "progress", "0.5", ";", "sleep", "3", ";", "echo", "\x1b[31mtwo\x1b[0m <b>bold</b>", ";",
        "write", "a.txt", "text",
    )  # fmt: skip
    number = chromium.site.operator().submit(spec=spec, name="log")
    chromium.open(f"/jobs/{number}.1")
    chromium.until("#log", "one")
    assert "two" not in chromium.text("#log")
    chromium.until("#state", "running")
    chromium.until("#log", "two <b>bold</b>")
    chromium.until("#state", "done")
    chromium.until("#why", "Download results")
    assert chromium.text("#log").count("one") == 1
    assert host in chromium.text("#copies")
    assert not chromium.driver.find_elements(By.CSS_SELECTOR, "#log b")
    assert not chromium.complaints()


def test_cancel_asks_first_and_stays_open_while_news_comes(chromium: Chromium, host: str) -> None:
    number = chromium.site.operator().submit(spec=_spec("sleep", "0.4"), count=8, name="busy")
    keep = chromium.site.operator().submit(spec=_spec("sleep", "600"), name="long")
    chromium.open(f"/batches/{keep}")
    chromium.until("#jobs", "running")
    chromium.driver.find_element(By.CSS_SELECTOR, "#cancel summary").click()
    chromium.driver.execute_script("refresh()")
    wait_for(lambda: chromium.site.operator().batch(number).ended_at is not None, "the end of the other batch")
    assert chromium.driver.find_element(By.ID, "cancel").get_attribute("open")
    chromium.driver.find_element(By.CSS_SELECTOR, "#cancel button").click()
    chromium.until("#state", "ended")
    chromium.until("#progress", "1 cancelled")


def test_the_keyboard_is_enough(chromium: Chromium) -> None:
    chromium.open("/")
    active = chromium.driver.switch_to.active_element
    active.send_keys(Keys.TAB)
    skip = chromium.driver.switch_to.active_element
    assert skip.text == "Skip to the content"
    assert chromium.driver.execute_script("return document.activeElement.getBoundingClientRect().top >= 0")
    skip.send_keys(Keys.ENTER)
    wait_for(lambda: chromium.path == "/#main", "the jump to the content")
    seen = set()
    for _ in range(60):
        webdriver.ActionChains(chromium.driver).send_keys(Keys.TAB).perform()
        focus = chromium.driver.execute_script(
            "const e = document.activeElement, s = getComputedStyle(e);"
            "return [e.tagName + ' ' + (e.innerText || '').slice(0, 30), s.outlineStyle, parseFloat(s.outlineWidth)]"
        )
        if focus[0].startswith("BODY"):
            break
        assert focus[1] != "none", f"nothing shows the focus on {focus[0]}"
        assert focus[2] >= 2, f"nothing shows the focus on {focus[0]}"
        seen.add(focus[0])
    assert "BUTTON Copy" in seen
    assert any(name.startswith("A All batches") for name in seen)


@pytest.mark.parametrize(
    "path", ["/", "/batches", "/batches/1", "/jobs/1.1", "/hosts", "/account", "/status", "/nothing"]
)
def test_pages_fit_every_width_and_follow_dark_and_light(chromium: Chromium, host: str, path: str) -> None:
    if path.endswith(("/1", "1.1")):
        chromium.site.operator().submit(spec=_spec("true"), name="wide " * 20)
    for width in (1200, 390):
        chromium.look(width=width)
        chromium.open(path)
        wide = chromium.driver.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width, f"{path} is {wide} wide on a screen of {width}"
    chromium.look(width=390)
    light = chromium.brightness()
    chromium.look(dark=True, width=390)
    dark = chromium.brightness()
    assert light > 180, f"{path} in light: {light}"
    assert dark < 70, f"{path} in dark: {dark}"
    weak = chromium.driver.execute_script(CONTRAST)
    assert not weak, f"{path} in dark: {weak}"
    chromium.look(width=1200)
    weak = chromium.driver.execute_script(CONTRAST)
    assert not weak, f"{path} in light: {weak}"
    complaints = [line for line in chromium.complaints() if "404" not in line]
    assert not complaints


# Texts whose contrast with the ground below them is less than WCAG's 4.5:1 (3:1 for large ones).
CONTRAST = """
const parse = (text) => {
  const n = text.match(/[\\d.]+/g).map(Number);
  return text.startsWith("color(srgb") ? [n[0] * 255, n[1] * 255, n[2] * 255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1];
};
const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
const ground = (element) => {
  const layers = [];
  for (let e = element; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
  return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
};
const light = (c) => {
  const [r, g, b] = c.slice(0, 3).map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const weak = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement, style = getComputedStyle(element);
  if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.closest(".hidden, [aria-hidden]")) continue;
  const below = ground(element), ink = parse(style.color);
  ink[3] *= Number(style.opacity);
  const a = light(over(ink, below)), b = light(below);
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const isLarge = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
  if (ratio < (isLarge ? 3 : 4.5)) weak.push(`${walker.currentNode.data.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
}
return weak;
"""


def test_signing_out_ends_it(chromium: Chromium) -> None:
    chromium.look()
    chromium.open("/batches")
    chromium.driver.find_element(By.CSS_SELECTOR, ".who button").click()
    wait_for(lambda: chromium.path == "/", "signing out")
    chromium.open("/batches")
    assert chromium.path.startswith("/login")
    assert chromium.text("h1") == "Sign in"
