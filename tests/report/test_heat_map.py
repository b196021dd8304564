"""A heat map: what its cells hold, and what is seen of it in a browser."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellm.errors import BellmError
from bellm.report.figures import HeatMap, make_heat_map
from bellm.report.report_files import write_page
from tests.report.browser import HOSTILE, complaints, find_all, overlaps, requests, visit
from tests.report.markup import assert_no_markup_from_outside

TEMPLATE = """{% extends "base.html.jinja" %}
{% from "macros.html.jinja" import heat_map %}
{% block sections %}<section>{{ heat_map(map, "Cosines") }}</section>{% endblock %}"""


def write_heat_page(folder: Path, heat_map: HeatMap) -> Path:
    (folder / "page.html.jinja").write_text(TEMPLATE, encoding="utf-8")
    write_page(folder / "page.html", folder / "page.html.jinja", heading="Heat", results={}, map=heat_map)
    return folder / "page.html"


def planted() -> HeatMap:
    values_RC = np.array([[-1, 0, 0.5, math.nan], [2, 0.25, -0.5, math.inf]])
    return make_heat_map(values_RC, ["first", "second"], ["a", "b", "a longer label", "d"], center=0)


def test_cells_say_their_value_and_are_colored_by_it() -> None:
    first, second = planted().cells
    assert [cell.words for cell in first] == ["\N{MINUS SIGN}1.00", "0.00", "0.50", "\N{EN DASH}"]
    assert [cell.color for cell in (*first, *second)] == [
        *("below", "above", "above", "empty"),
        *("above", "above", "below", "empty"),
    ]
    assert [cell.opacity for cell in first] == [0.25, 0, 0.125, 0]
    assert max(cell.opacity for cell in second) == second[0].opacity == 0.5
    assert second[2].tooltip == "second, a longer label: \N{MINUS SIGN}0.50"


def test_without_a_center_the_lowest_value_has_no_color() -> None:
    ((low, middle, high),) = make_heat_map(np.array([[3, 4, 5]]), ["r"], list("abc"), write="{:.0f}".format).cells
    assert [cell.opacity for cell in (low, middle, high)] == [0, 0.25, 0.5]
    assert {cell.color for cell in (low, middle, high)} == {"above"}
    assert high.words == "5"


@pytest.mark.parametrize("value", [math.nan, 0.0, 7.0])
def test_a_matrix_of_one_value_has_no_color(value: float) -> None:
    cells = make_heat_map(np.full((2, 2), value), list("ab"), list("cd")).cells
    assert {cell.opacity for row in cells for cell in row} == {0}


@pytest.mark.parametrize(("shape", "columns"), [((2, 3), 2), ((2, 0), 0)])
def test_labels_that_do_not_fit_are_refused(shape: tuple[int, int], columns: int) -> None:
    with pytest.raises(BellmError, match=rf"shape \({shape[0]}, {shape[1]}\) with 2 row labels and {columns} column"):
        make_heat_map(np.zeros(shape), ["a", "b"], ["c"] * columns)


def test_hostile_labels_are_text(driver: Any, tmp_path: Path) -> None:
    page = write_heat_page(tmp_path, make_heat_map(np.eye(4), HOSTILE, HOSTILE))
    assert_no_markup_from_outside(page, num_scripts=2)
    visit(driver, page)
    assert driver.title == "Heat \N{MIDDLE DOT} bellm"
    titles = [title.get_property("textContent") for title in find_all(driver, ".heat > text > title")]
    assert titles == [*HOSTILE, *HOSTILE]
    assert find_all(driver, ".heat text")[0].text.endswith("\N{HORIZONTAL ELLIPSIS}")
    assert complaints(driver) == []
    assert len(requests(driver)) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_number_can_be_read(driver: Any, tmp_path: Path, scheme: str) -> None:
    visit(driver, write_heat_page(tmp_path, planted()), scheme=scheme)
    assert [text.text for text in find_all(driver, ".heat g text")][:3] == ["\N{MINUS SIGN}1.00", "0.00", "0.50"]
    assert overlaps(driver, ".heat text:not(.slanted)") == []
    script = """
      const rgb = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const paper = rgb(getComputedStyle(document.body).backgroundColor);
      return [...document.querySelectorAll(".heat g")].map(cell => {
        const rect = getComputedStyle(cell.querySelector("rect"));
        const mixed = rgb(rect.fill).map((part, i) => part * rect.fillOpacity + paper[i] * (1 - rect.fillOpacity));
        return [rgb(getComputedStyle(cell.querySelector("text")).fill), mixed];
      });
    """
    contrasts = [contrast(*colors) for colors in driver.execute_script(script)]
    assert len(contrasts) == 8
    assert min(contrasts) >= 4.5


@pytest.mark.parametrize("width", [360, 1280])
def test_a_wide_heat_map_scrolls_inside_the_page(driver: Any, tmp_path: Path, width: int) -> None:
    labels = [f"layer {number}" for number in range(30)]
    values_RC = np.random.default_rng(0).random((30, 30))
    visit(driver, write_heat_page(tmp_path, make_heat_map(values_RC, labels, labels)), width=width)
    scrolled, inner = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert scrolled <= inner == width
    assert overlaps(driver, ".heat g text, .heat .up") == []


def contrast(one: list[float], other: list[float]) -> float:
    """Of two colors, as WCAG defines it; 4.5 is enough for text."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: list[float]) -> float:
    parts = [part / 255 for part in color]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))
