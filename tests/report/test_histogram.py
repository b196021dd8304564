"""A histogram: where its outlines stand, and what is seen of it in a browser."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellm.report.figures import Histogram, Mark, make_histogram
from bellm.report.report_files import write_page
from tests.report.browser import complaints, find_all, visit

TEMPLATE = """{% extends "base.html.jinja" %}
{% from "macros.html.jinja" import histogram %}
{% block sections %}<section><div class="plot low">{{ histogram(drawn, "Cosines") }}</div></section>{% endblock %}"""
MANY, FEW = Mark("c1", "s0", "many"), Mark("c0", "s2", "few")


def planted() -> Histogram:
    return make_histogram({MANY: np.array([0.0, 0.0, 0.0, 1.0]), FEW: np.array([0.0, 0.5, 1.0, 1.0, 1.0])})


def test_outlines_are_shares_of_their_group() -> None:
    drawn = planted()
    assert len(drawn.bins) == 30
    for mark, first, last in ((MANY, 75, 25), (FEW, 20, 60)):
        corners = [tuple(map(float, corner.split())) for corner in drawn.outlines[mark][1:-1].split("L")]
        assert len(corners) == 62
        assert corners[0] == (drawn.across.percent(0), 100)
        assert corners[-1] == (drawn.across.percent(1), 100)
        heights = [100 - y for _, y in corners[1:-1:2]]
        assert heights[0] == pytest.approx(100 * first / 75, abs=0.01)
        assert heights[-1] == pytest.approx(100 * last / 75, abs=0.01)
        assert sum(heights) == pytest.approx(100 * 100 / 75, abs=0.05)
    assert drawn.bins[0].tooltip == "0.00 to 0.03: 75.0 % of many, 20.0 % of few"
    assert drawn.bins[-1].tooltip == "0.97 to 1.00: 25.0 % of many, 60.0 % of few"
    left = drawn.across.percent(0)
    assert (drawn.bins[0].x, drawn.bins[0].x + 30 * drawn.bins[0].width) == (left, pytest.approx(100 - left, abs=0.2))


def test_values_that_are_all_alike_are_one_bar() -> None:
    drawn = make_histogram({MANY: np.full(5, 0.25)})
    assert sum("100.0 % of many" in each.tooltip for each in drawn.bins) == 1


@pytest.mark.parametrize("width", [360, 1280])
def test_a_bin_says_its_shares_under_the_pointer(driver: Any, tmp_path: Path, width: int) -> None:
    (tmp_path / "page.html.jinja").write_text(TEMPLATE, encoding="utf-8")
    write_page(tmp_path / "page.html", tmp_path / "page.html.jinja", heading="Words", results={}, drawn=planted())
    visit(driver, tmp_path / "page.html", width=width, height=740)
    bins = find_all(driver, "rect.bin")
    point = driver.execute_script(
        "const r = arguments[0].getBoundingClientRect();"
        "const it = document.elementFromPoint(r.x + r.width / 2, r.y + 9);"
        "return it.querySelector('title').textContent",
        bins[0],
    )
    assert point == "0.00 to 0.03: 75.0 % of many, 20.0 % of few"
    assert complaints(driver) == []
