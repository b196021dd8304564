"""The page in a real browser: what is seen, what a click, a key and a pointer do, and what hostile texts do not."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellm.errors import SourceError
from bellm.evaluate.report_page import write_report_page
from bellm.evaluate.results import Report, TaskResult
from tests.evaluate.reports import STS, TRANSFER, report
from tests.report.browser import HOSTILE, complaints, find, find_all, is_light, requests, sorts, values, visit
from tests.report.markup import assert_no_markup_from_outside


def open_page(driver: Any, folder: Path, found: Report, **screen: Any) -> None:
    write_report_page(found, folder / "page.html")
    visit(driver, folder / "page.html", **screen)


def point_at(driver: Any, element: Any) -> None:
    """Move the pointer over a point or an item of the list, and wait until the page has taken notice."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.wait import WebDriverWait

    pair = element.get_attribute("data-pair")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(driver).move_to_element(element).perform()
    WebDriverWait(driver, 5).until(lambda driver: find_all(driver, f"circle.chosen[data-pair='{pair}']"))


def hostile_report() -> Report:
    """Every text that comes from outside is an attack."""
    texts = tuple((HOSTILE[number % 4], HOSTILE[(number + 1) % 4]) for number in range(40))
    random = np.random.default_rng(0)
    result = TaskResult(HOSTILE[0], HOSTILE[1], random.random(40), random.random(40), texts)
    planted = report((0, 2), sts=["STS12"])
    score = dataclasses.replace(planted.runs[0].scores["STS12"], metric=HOSTILE[1])
    runs = [
        dataclasses.replace(
            run,
            model=HOSTILE[2] + str(number),
            metadata={**run.metadata, "template": HOSTILE[1], HOSTILE[3]: HOSTILE[0]},
            scores={HOSTILE[0]: score},
            differences={HOSTILE[0]: run.differences["STS12"], "STS average": run.differences["STS average"]}
            if number
            else {},
        )
        for number, run in enumerate(planted.runs)
    ]
    return Report(tuple(runs), ({HOSTILE[0]: result},) * 2)


@pytest.mark.parametrize(
    ("found", "sections"),
    [
        (report(), ["scores", "pairs", "again"]),
        (report((0, 8), transfer=TRANSFER), ["scores", "differences", "layers", "pairs", "again"]),
        (report((0, 2, 4, 8, 8, 16), sts=["STS12"]), ["scores", "differences", "layers", "pairs", "again"]),
        (report((8, 8), sts=(), transfer=TRANSFER), ["scores", "differences", "again"]),
    ],
    ids=["one run", "two runs", "six runs", "no pairs"],
)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_renders_alone_and_without_complaint(
    driver: Any, tmp_path: Path, found: Report, sections: list[str], scheme: str
) -> None:
    open_page(driver, tmp_path, found, scheme=scheme)
    assert [heading.get_attribute("id") for heading in find_all(driver, "h2")] == sections
    assert all(section.is_displayed() for section in find_all(driver, "section"))
    assert len(find_all(driver, ".scores tbody tr")) == len(found.runs)
    assert complaints(driver) == []
    assert requests(driver) == [(tmp_path / "page.html").as_uri()]
    assert is_light(driver) == (scheme == "light")


def test_a_click_on_a_heading_sorts_and_another_turns_the_order(driver: Any, tmp_path: Path) -> None:
    open_page(driver, tmp_path, report((0, 2, 4, 16)))
    column = 1 + list(report().runs[0].averages | report().runs[0].scores).index("STS15")
    before = values(driver, column)
    assert before not in (sorted(before), sorted(before, reverse=True)) or len(set(before)) > 1
    find_all(driver, ".scores thead button")[column].click()
    assert values(driver, column) == sorted(before, reverse=True)
    assert sorts(driver).index("descending") == column
    find_all(driver, ".scores thead button")[column].click()
    assert values(driver, column) == sorted(before)
    assert sorts(driver) == ["ascending" if number == column else "none" for number in range(9)]
    find_all(driver, ".scores thead button")[0].click()
    assert values(driver, column) == before


def test_the_keyboard_sorts(driver: Any, tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains, Keys

    open_page(driver, tmp_path, report((0, 2, 4, 16)))
    scrolling, model, average = (find(driver, ".scroll"), *find_all(driver, ".scores thead button")[:2])
    for stop in (scrolling, model, average):
        ActionChains(driver).send_keys(Keys.TAB).perform()
        assert driver.switch_to.active_element == stop
    before = values(driver, 1)
    ActionChains(driver).send_keys(Keys.ENTER).perform()
    assert values(driver, 1) == sorted(before, reverse=True) != before
    ActionChains(driver).send_keys(Keys.SPACE).perform()
    assert values(driver, 1) == sorted(before)
    assert sorts(driver)[1] == "ascending"


def test_pointing_at_a_pair_shows_its_sentences(driver: Any, tmp_path: Path) -> None:
    found = report((0, 8), sts=["STS12", "STS13"])
    open_page(driver, tmp_path, found)
    circle = find(driver, ".scatter:not([hidden]) g.worst circle")
    result, pair = found.results[0]["STS12"], int(circle.get_attribute("data-pair"))
    point_at(driver, circle)
    lines = find(driver, ".scatter:not([hidden]) .card").text.splitlines()
    assert tuple(lines[:2]) == result.texts[pair]
    assert lines[2] == f"rating {result.gold_N[pair]:.3g}, cosine {result.item_scores_N[pair]:.3f}"
    assert find(driver, "li.chosen").text.splitlines()[:2] == lines[:2]
    point_at(driver, find_all(driver, ".scatter:not([hidden]) li")[1])
    assert find_all(driver, "circle.chosen") == [find_all(driver, "g.worst circle")[1]]


def test_the_selects_change_what_is_plotted(driver: Any, tmp_path: Path) -> None:
    from selenium.webdriver.support.select import Select

    found = report((0, 8), sts=["STS12", "STS13"])
    open_page(driver, tmp_path, found)
    for task, run in (("STS12", 0), ("STS13", 0), ("STS13", 1)):
        Select(find(driver, "#task")).select_by_visible_text(task)
        Select(find(driver, "#run")).select_by_index(run)
        (shown,) = [each for each in find_all(driver, ".scatter") if each.is_displayed()]
        result = found.results[run][task]
        for circle in shown.find_elements("css selector", "circle")[:5]:
            cosine = result.item_scores_N[int(circle.get_attribute("data-pair"))]
            assert circle.get_attribute("data-words").endswith(f"cosine {cosine:.3f}")


@pytest.mark.parametrize("opened", [(0,), (0, 2, 4, 8, 8, 16)])
def test_the_page_fits_a_phone(driver: Any, tmp_path: Path, opened: tuple[int, ...]) -> None:
    open_page(driver, tmp_path, report(opened, transfer=TRANSFER), width=360, height=740)
    width, inner = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width <= inner == 360
    scrolled, seen = driver.execute_script(
        "const box = document.querySelector('.scroll'); return [box.scrollWidth, box.clientWidth]"
    )
    assert scrolled > seen


def test_hostile_texts_are_shown_and_do_nothing(driver: Any, tmp_path: Path) -> None:
    open_page(driver, tmp_path, hostile_report())
    circle = find(driver, ".scatter:not([hidden]) g.worst circle")
    point_at(driver, circle)
    assert driver.title.endswith("bellm")
    first = HOSTILE[int(circle.get_attribute("data-pair")) % 4]
    assert find(driver, ".card p").get_property("textContent") == first
    assert find(driver, "li[data-pair] p").get_property("textContent") == first
    assert len(find_all(driver, "script")) == 3
    assert find_all(driver, "img, [onerror], [onmouseover]") == []
    assert complaints(driver) == []
    assert len(requests(driver)) == 1


def test_the_numbers_are_in_the_page_for_programs(tmp_path: Path) -> None:
    found = report((0, 8), transfer=TRANSFER)
    write_report_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    _, _, rest = page.partition('<script type="application/json" id="results">')
    results = json.loads(rest.partition("</script>")[0])
    assert results == json.loads(json.dumps(found.to_json()))
    assert list(results["scores"]) == list(found.runs[0].scores)
    assert "bellm evaluation of models/smollm2<" in page  # The model of both runs, without their settings.
    assert f"In points: Spearman of cosine ({', '.join(STS)}); accuracy ({', '.join(TRANSFER)})." in page


def test_a_large_report_stays_small_and_says_so(tmp_path: Path) -> None:
    write_report_page(report(sts=["STS14"], pairs=3750), tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<circle cx") == 300
    assert "300 of 3,750 pairs" in page
    assert len(page) < 150_000


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.mkdir()
    with pytest.raises(SourceError, match=r"page.html cannot be written: "):
        write_report_page(report(), file)
    assert list(tmp_path.iterdir()) == [file]
    file.rmdir()
    write_report_page(report(), file)
    assert list(tmp_path.iterdir()) == [file]


def test_half_a_character_does_not_stop_the_page(tmp_path: Path) -> None:
    found = report(sts=["STS12"])
    result = dataclasses.replace(found.results[0]["STS12"], texts=(("half \ud800", "a character"),) * 240)
    write_report_page(Report(found.runs, ({"STS12": result},)), tmp_path / "page.html")
    assert "half ?" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_markup_in_names_and_sentences_is_text(tmp_path: Path) -> None:
    write_report_page(hostile_report(), tmp_path / "page.html")
    assert_no_markup_from_outside(tmp_path / "page.html", num_scripts=3)


def test_the_geometry_of_vectors_has_a_table(tmp_path: Path) -> None:
    found = report((0, 8))
    geometry = {"anisotropy": 0.81234, "uniformity": -0.567, "effective_rank": 41.26, "num_texts": 4096}
    runs = (dataclasses.replace(found.runs[0], geometry=geometry), found.runs[1])
    write_report_page(Report(runs, found.results), tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    for text in ('id="geometry"', ">0.812<", ">-0.57<", ">41.3<", ">4,096<", ">-<"):
        assert text in html
    write_report_page(found, tmp_path / "page.html")
    assert 'id="geometry"' not in (tmp_path / "page.html").read_text(encoding="utf-8")
