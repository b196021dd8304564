"""A browser without a window, for tests of what people see."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.processes import end

HOSTILE = (
    "<script>document.title = 'taken'</script>",
    "</script><script>document.title = 'taken'</script>",
    '"><img src="https://example.org/x" onerror="document.title = \'taken\'">',
    "' onmouseover='document.title = 1' {{ 7 * 7 }} <!-- &lt; & \u2028",
)
"""Texts that are an attack on the page that shows them."""

_OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A selenium driver of a Chromium with a fresh profile; skips the test where one of the three is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="no selenium: pip install selenium")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver_program = shutil.which("chromedriver")
    if program is None or driver_program is None:
        pytest.skip("no Chromium with its chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for option in (*_OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    # The program is named, so that selenium looks for none on the network.
    service = webdriver.ChromeService(driver_program, popen_kw={"start_new_session": True})
    driver = None
    try:
        driver = webdriver.Chrome(options=options, service=service)
        yield driver
    finally:
        try:
            if driver is not None:
                driver.quit()
        finally:
            if service.process is not None:
                end(service.process)


def visit(driver: Any, file: Path, *, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
    """Open a file in a window of some width, or on a phone's screen where it is narrow."""
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    complaints(driver), requests(driver)  # What was logged before is no longer of interest.
    driver.get(file.as_uri())


def complaints(driver: Any) -> list[str]:
    """What the console says since the last call."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requests(driver: Any) -> list[str]:
    """What was asked for since the last call, on the disk or the network."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]


def is_light(driver: Any) -> bool:
    """Whether the page has dark words on light paper."""
    ink, paper = driver.execute_script(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    )
    return sum(map(int, ink[4:-1].split(","))) < sum(map(int, paper[4:-1].split(",")))


def values(driver: Any, column: int, table: str = ".scores") -> list[float]:
    """What a column of a table holds, from top to bottom."""
    script = """
      const [column, table] = arguments;
      return [...document.querySelector(table).tBodies[0].rows].map(row => +row.cells[column].dataset.value);
    """
    return list(driver.execute_script(script, column, table))


def overlaps(driver: Any, selector: str) -> list[tuple[str, str]]:
    """Words of different elements that lie on each other, of those that are seen."""
    script = """
      const boxes = [...document.querySelectorAll(arguments[0])]
        .filter(one => one.checkVisibility({visibilityProperty: true}))
        .map(one => [one.textContent.trim(), one.getBoundingClientRect()]);
      const meet = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
      return boxes.flatMap(([words, box], at) => boxes.slice(at + 1)
        .filter(([_, other]) => meet(box, other)).map(([others]) => [words, others]));
    """
    return [tuple(pair) for pair in driver.execute_script(script, selector)]


def sorts(driver: Any) -> list[str]:
    return [heading.get_attribute("aria-sort") for heading in find_all(driver, ".scores thead th")]


def find_all(driver: Any, selector: str) -> list[Any]:
    return list(driver.find_elements("css selector", selector))


def find(driver: Any, selector: str) -> Any:
    return driver.find_element("css selector", selector)
