"""The page of an analysis in a real browser."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bellm.analyse import Analysis, check_analysis_folder, write_analysis
from bellm.errors import SourceError
from tests.analyse.analyses import across_layers, of_layers, of_models
from tests.report.browser import HOSTILE, complaints, find, find_all, is_light, overlaps, requests, values, visit
from tests.report.markup import assert_no_markup_from_outside

WORDS = "text:not(.slanted), .legend li, h2, h3, .note, .ways, .unit, .numbers, .forest th[scope=row]"
TWO, FOUR = of_models("heron", "crane"), of_models("heron", "crane", "stork", "ibis")


def open_page(driver: Any, folder: Path, analysis: Analysis, **screen: Any) -> None:
    write_analysis(analysis, folder)
    visit(driver, folder / "analysis.html", **screen)


def tooltips(heat: Any) -> list[str]:
    return [title.get_property("textContent") for title in heat.find_elements("css selector", "g title")]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("analysis", "sections", "num_maps", "heading"),
    [
        (TWO, ["scores", "numbers", "again"], 0, "What heron and crane have in common"),
        (
            of_models("heron", "crane", "stork"),
            ["scores", "maps", "numbers", "again"],
            17,
            "What 3 models have in common",
        ),
        (FOUR, ["maps", "agreement", "numbers", "again"], 18, "What 4 models have in common"),
        (of_layers(), ["maps", "agreement", "again"], 7, "The layers of models/heron"),
        (across_layers(), ["maps", "agreement", "again"], 3, "The layers of heron and models/crane"),
    ],
    ids=["two", "three", "four", "layers", "across"],
)
def test_the_page_renders_alone_and_without_complaint(
    driver: Any, tmp_path: Path, analysis: Analysis, sections: list[str], num_maps: int, heading: str, scheme: str
) -> None:
    open_page(driver, tmp_path, analysis, scheme=scheme)
    assert find(driver, "h1").text == heading
    assert [heading.get_attribute("id") for heading in find_all(driver, "h2")] == sections
    assert len(find_all(driver, "svg.heat")) == num_maps
    assert len(find_all(driver, ".summary li")) > 0
    assert complaints(driver) == []
    assert requests(driver) == [(tmp_path / "analysis.html").as_uri()]
    assert is_light(driver) == (scheme == "light")


def test_cells_say_what_they_hold_under_the_pointer(driver: Any, tmp_path: Path) -> None:
    open_page(driver, tmp_path, of_layers())
    assert find(driver, "section[aria-labelledby=maps] h3").text == "debiased CKA, calibrated"
    cells = [
        cell.get_property("textContent")
        for cell in find_all(driver, "svg.heat")[0].find_elements("css selector", "g title")
    ]
    dash = "\N{EN DASH}"
    assert (cells[0], cells[1], cells[6]) == (f"0, 0: {dash}", "0, 1: 0.95", "1, 0: 0.95")
    for summary in find_all(driver, "details summary"):
        summary.click()
    assert all(drawn.is_displayed() for drawn in find_all(driver, "svg.heat"))
    titles = [summary.text for summary in find_all(driver, "details summary")]
    titled = [
        "linear CKA, calibrated",
        "linear regression R², calibrated",
        "RSA, calibrated",
        "kNN Jaccard, calibrated",
    ]
    assert titles == [*titled, "magnitude difference"]
    assert tooltips(find_all(driver, "svg.heat")[2])[6] == f"1, 0: {dash}"


def test_the_forest_has_a_row_for_each_calibrated_measure(driver: Any, tmp_path: Path) -> None:
    open_page(driver, tmp_path, TWO)
    rows = {" ".join(row.text.split()) for row in find_all(driver, ".forest tbody tr")}
    assert len(rows) == 14
    assert "linear CKA heron and crane: 80.073.8 to 86.3" in rows
    assert find(driver, ".forest .ways").text.split() == ["←", "chance", "equal", "→"]
    assert find(driver, ".forest .unit").text == "per cent"
    assert len(find_all(driver, ".forest g.open")) == 0


def test_the_table_sorts(driver: Any, tmp_path: Path) -> None:
    open_page(driver, tmp_path, FOUR)
    before = values(driver, 3)
    assert len(before) == 6 * 17
    find_all(driver, ".scores thead button")[3].click()
    assert values(driver, 3) == sorted(before, reverse=True)
    find_all(driver, ".scores thead button")[4].click()
    assert values(driver, 4) == sorted(values(driver, 4))


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize(
    "analysis", [TWO, FOUR, of_layers(count=31), across_layers()], ids=["two", "four", "layers", "across"]
)
def test_the_page_fits_its_screen_and_no_words_lie_on_others(
    driver: Any, tmp_path: Path, analysis: Analysis, width: int
) -> None:
    open_page(driver, tmp_path, analysis, width=width, height=740)
    scrolled, inner = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert scrolled <= inner == width
    assert overlaps(driver, WORDS) == []


def test_hostile_texts_are_shown_and_do_nothing(driver: Any, tmp_path: Path) -> None:
    for analysis in (of_models(*HOSTILE), of_models(*HOSTILE[:2]), of_layers(HOSTILE[2])):
        folder = tmp_path / str(len(analysis.comparisons))
        open_page(driver, folder, analysis)
        assert_no_markup_from_outside(folder / "analysis.html", num_scripts=2)
        assert driver.title.endswith("bellm")
        assert find_all(driver, "img, [onerror], [onmouseover]") == []
        assert complaints(driver) == []
        assert len(requests(driver)) == 1
        assert "<img" not in (folder / "analysis.md").read_text(encoding="utf-8").partition("|")[2]


def test_the_folder_has_json_and_markdown_beside(tmp_path: Path) -> None:
    record = write_analysis(TWO, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(record))
    results = re.search('id="results">(.*)</script>', (tmp_path / "out" / "analysis.html").read_text(encoding="utf-8"))
    assert results is not None
    assert json.loads(results[1]) == json.loads(json.dumps(record))
    table = (tmp_path / "out" / "analysis.md").read_text(encoding="utf-8")
    assert "| linear CKA | 0.840 | 0.790 to 0.890 | 0.200 \N{PLUS-MINUS SIGN} 0.010 | 0.80 | 0.010 |" in table


def test_other_results_are_not_replaced_unasked(tmp_path: Path) -> None:
    write_analysis(TWO, tmp_path)
    check_analysis_folder(tmp_path, ["heron", "crane"])
    with pytest.raises(SourceError, match=r"results.json holds results of heron, crane. Choose another folder, or"):
        write_analysis(FOUR, tmp_path)
    write_analysis(FOUR, tmp_path, force=True)
    (tmp_path / "results.json").write_text('{"model": "heron", "compared": [{"model": "crane"}], "scores": {}}')
    with pytest.raises(SourceError, match="holds results of another command"):
        check_analysis_folder(tmp_path, ["heron", "crane"])


def test_a_map_without_a_chance_level_shows_values(driver: Any, tmp_path: Path) -> None:
    found = of_layers()
    bare = [
        dataclasses.replace(one, measures={"magnitude_difference": one.measures["magnitude_difference"]})
        for one in found.comparisons
    ]
    open_page(driver, tmp_path, dataclasses.replace(found, comparisons=tuple(bare)))
    assert find(driver, "section[aria-labelledby=maps] h3").text == "magnitude difference"
    assert complaints(driver) == []
