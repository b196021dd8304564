"""The page of word scores in a real browser."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellm.analyse import compare_words, write_words
from bellm.evaluate import EvaluatedModel, Report
from tests.analyse.test_words import Table, folder, rated_as_relation
from tests.report.browser import HOSTILE, complaints, find, find_all, is_light, overlaps, requests, visit
from tests.report.markup import assert_no_markup_from_outside

__all__ = ["folder"]

WORDS = "text:not(.slanted), .legend li, h2, h3, .note, figcaption, .numbers, .forest th[scope=row]"


def scored(folder: Path, *names: str) -> Report:
    """Models that know the more of the same words the earlier they come."""
    from bellm.data import read_relations

    relations = [*read_relations(folder), rated_as_relation(folder)]
    draw = np.random.default_rng(0)
    common = {word: draw.normal(size=6) for one in relations for word in one.words}
    models = []
    for at, name in enumerate(names):
        table = Table({word: vector + 0.5 * at * draw.normal(size=6) for word, vector in common.items()})
        models.append(EvaluatedModel.of(table, name))
    return compare_words(models, data=folder, resamples=100)


def open_page(driver: Any, report: Report, out: Path, **screen: Any) -> None:
    write_words(report, out)
    visit(driver, out / "words.html", **screen)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_renders_alone_and_without_complaint(driver: Any, folder: Path, tmp_path: Path, scheme: str) -> None:
    open_page(driver, scored(folder, "heron", "crane", "stork"), tmp_path / "out", scheme=scheme)
    assert find(driver, ".kicker").text == "bellm words"
    headings = [heading.get_attribute("id") for heading in find_all(driver, "h2")]
    assert headings == ["scores", "differences", "geometry", "pairs", "cosines", "agreement", "again"]
    assert complaints(driver) == []
    assert requests(driver) == [(tmp_path / "out" / "words.html").as_uri()]
    assert is_light(driver) == (scheme == "light")
    page = (tmp_path / "out" / "words.html").read_text(encoding="utf-8")
    results = re.search('id="results">(.*)</script>', page)
    assert results is not None
    assert json.loads(results[1]) == json.loads((tmp_path / "out" / "results.json").read_text())


def test_histograms_and_agreement_say_what_they_hold_under_the_pointer(
    driver: Any, folder: Path, tmp_path: Path
) -> None:
    report = scored(folder, "heron", "crane")
    open_page(driver, report, tmp_path / "out")
    section = find(driver, "section[aria-labelledby=cosines]")
    titles = [each.text for each in section.find_elements("css selector", "h3, summary")]
    assert titles == ["morphological pairs", "related words", "WordNet synonyms"]
    assert [each.text for each in section.find_elements("css selector", "figcaption")][:2] == ["heron", "crane"]
    result: Any = report.results[0]["morphological pairs"]
    shares = [each.get_property("textContent") for each in find_all(driver, "rect.bin title")][:30]
    counted = [float(re.findall(r"([\d.]+) %", words)[0]) for words in shares]
    assert sum(counted) == pytest.approx(100, abs=1)
    low = min(result.related_N.min(), result.random_N.min())
    assert shares[0].startswith(f"{low:.2f} to ".replace("-", "\N{MINUS SIGN}"))
    note = section.find_element("css selector", "figure .note").text
    assert note.startswith(f"AUC {100 * result.item_scores_N.mean():.1f}, overlap ")
    (heat,) = find_all(driver, "svg.heat")
    cells = [cell.get_property("textContent") for cell in heat.find_elements("css selector", "g title")]
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    agreement = f"{record['agreement'][0]['value'] / 100:.2f}"
    assert cells[1:3] == [f"heron, crane: {agreement}", f"crane, heron: {agreement}"]


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_fits_its_screen_and_no_words_lie_on_others(
    driver: Any, folder: Path, tmp_path: Path, width: int
) -> None:
    names = ("models/heron-with-a-long-name", "crane", "stork", "ibis")
    open_page(driver, scored(folder, *names), tmp_path / "out", width=width, height=740)
    for summary in find_all(driver, "details summary"):
        summary.click()
    scrolled, inner = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert scrolled <= inner == width
    assert overlaps(driver, WORDS) == []


def test_hostile_names_are_shown_and_do_nothing(driver: Any, folder: Path, tmp_path: Path) -> None:
    open_page(driver, scored(folder, *HOSTILE[:3]), tmp_path / "out")
    assert_no_markup_from_outside(tmp_path / "out" / "words.html", num_scripts=3)
    assert driver.title.endswith("bellm")
    assert complaints(driver) == []
    assert len(requests(driver)) == 1


def test_one_model_has_histograms_and_no_agreement(driver: Any, folder: Path, tmp_path: Path) -> None:
    open_page(driver, scored(folder, "heron"), tmp_path / "out")
    headings = [heading.get_attribute("id") for heading in find_all(driver, "h2")]
    assert headings == ["scores", "geometry", "pairs", "cosines", "again"]
    assert complaints(driver) == []
