"""The page of a finding in a real browser: what is seen, what click and pointer do, and what hostile texts do not."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from bellm.errors import SourceError
from bellm.layer_search.candidates import CandidateScores
from bellm.layer_search.finder import Finding
from bellm.layer_search.layer_page import write_layer_page
from bellm.layer_search.turning import TurningPoint
from bellm.report.formatting import BETTER, WORSE
from tests.layer_search.findings import LAYERS, candidate, finding, record_of, trained
from tests.report.browser import HOSTILE, complaints, find, find_all, is_light, overlaps, requests, values, visit
from tests.report.markup import assert_no_markup_from_outside

STRAIGHT = TurningPoint(None, None, None, 0.4, "the curve turns no more than noise can make it (p = 0.40)")
ALL = "section[aria-labelledby=candidates] .scores"
LAYER_BY_LAYER = "details .scores"
WORDS = "text, .caption, p.across, .legend li, h2, .note, .card, .ways, .unit, .numbers, .forest th[scope=row]"


def open_page(driver: Any, folder: Path, found: Finding, **screen: Any) -> None:
    write_layer_page(found, record_of(found), folder / "layers.html")
    visit(driver, folder / "layers.html", **screen)


def nothing_open() -> Finding:
    """A model with one layer that can be opened, which is a no-op."""
    found = finding(turning=STRAIGHT)
    some = [candidate("none", (), 0, 1), candidate("all", (0,), 0, 1, no_op="Only the last token is pooled.")]
    nowhere = dataclasses.replace(found.layer_stats, looks_ahead=(None,) * LAYERS)
    search = CandidateScores(found.search.task, LAYERS, tuple(some))
    return dataclasses.replace(found, layer_stats=nowhere, search=search)


def hostile() -> Finding:
    """Every text that comes from outside is an attack."""
    found = finding(task=HOSTILE[0], turning=dataclasses.replace(STRAIGHT, reason=HOSTILE[1]))
    metric = dataclasses.replace(found.degradation.scores[0], metric=HOSTILE[2])
    scores = (metric, *found.degradation.scores[1:])
    attacked = [
        dataclasses.replace(one, bidirectional=HOSTILE[3]) if one.bidirectional == "last:2" else one
        for one in found.search.candidates
    ]
    search = dataclasses.replace(found.search, candidates=tuple(attacked))
    return dataclasses.replace(found, degradation=dataclasses.replace(found.degradation, scores=scores), search=search)


def point_at(driver: Any, svg: Any, share: float) -> str:
    """Move the pointer to a share of a figure's width; the card's words."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.support.wait import WebDriverWait

    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", svg)
    width = driver.execute_script("return arguments[0].getBoundingClientRect().width", svg)
    ActionChains(driver).move_to_element_with_offset(svg, round((share - 0.5) * width), 0).perform()
    shown = "return [...arguments[0].closest('.along').querySelectorAll('.card [data-at]:not([hidden])')]"
    (words,) = WebDriverWait(driver, 5).until(lambda driver: driver.execute_script(shown, svg))
    return " ".join(words.text.split())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    ("found", "sections", "panels"),
    [
        (finding(), ["curve", "layers", "others", "candidates", "again"], 4),
        (finding(turning=STRAIGHT), ["curve", "layers", "others", "candidates", "again"], 4),
        (nothing_open(), ["curve", "layers", "candidates", "again"], 2),
        (trained(), ["curve", "layers", "others", "trained", "candidates", "again"], 4),
    ],
    ids=["turning", "no turning point", "nothing to open", "trained"],
)
def test_the_page_renders_alone_and_without_complaint(
    driver: Any, tmp_path: Path, found: Finding, sections: list[str], panels: int, scheme: str
) -> None:
    open_page(driver, tmp_path, found, scheme=scheme)
    assert [heading.get_attribute("id") for heading in find_all(driver, "h2")] == sections
    assert all(section.is_displayed() for section in find_all(driver, "section"))
    assert len(find_all(driver, ".stack .plot > svg")) == panels
    assert len(find_all(driver, f"{ALL} tbody tr")) == len(found.search.candidates)
    assert [line.text for line in find_all(driver, ".summary li")] == found.summary.splitlines()
    assert bool(find_all(driver, "rect.reach, line.turn, line.opened")) == (found.degradation.rule is not None)
    assert complaints(driver) == []
    assert requests(driver) == [(tmp_path / "layers.html").as_uri()]
    assert is_light(driver) == (scheme == "light")


@pytest.mark.parametrize(
    ("left_out", "heading", "sections", "panels", "columns"),
    [
        (["layer_stats", "search"], "The score breaks away below 8 of 12 layers", ["curve", "layers", "again"], 0, 2),
        (["degradation", "search"], "What the layers share, and where they look", ["layers", "again"], 2, 3),
        (["degradation", "layer_stats"], None, ["layers", "others", "candidates", "again"], 2, 3),
        (["search"], "The score breaks away below 8 of 12 layers", ["curve", "layers", "again"], 2, 4),
    ],
    ids=str,
)
def test_what_was_not_asked_for_has_no_place(
    driver: Any,
    tmp_path: Path,
    left_out: list[str],
    heading: str | None,
    sections: list[str],
    panels: int,
    columns: int,
) -> None:
    found = dataclasses.replace(finding(), **dict.fromkeys(left_out))
    open_page(driver, tmp_path, found)
    assert [one.get_attribute("id") for one in find_all(driver, "h2")] == sections
    assert find_all(driver, "h1")[0].text == (heading or "Without training, layer 2 beats causal")
    assert len(find_all(driver, ".stack .plot > svg")) == panels
    assert len(find_all(driver, "section[aria-labelledby=layers] thead th")) == columns
    assert [line.text for line in find_all(driver, ".summary li")] == found.summary.splitlines()
    assert complaints(driver) == []
    words = [line.text for line in find_all(driver, ".summary li")]
    assert any("was not tried" in line for line in words) == ("search" in left_out and "degradation" not in left_out)


def test_marks_say_what_a_candidate_does(driver: Any, tmp_path: Path) -> None:
    open_page(driver, tmp_path, finding())
    legends = [
        [item.text for item in find_all(driver, f"section[aria-labelledby={name}] .legend li")]
        for name in ("curve", "layers", "others")
    ]
    assert legends[0][1:] == ["turning point: 8 (95 % interval 7 to 10)", "what the paper\u2019s rule opens: last:4"]
    assert legends[1] == [
        "significantly better",
        "significantly worse",
        "no difference can be told",
        "no-op: exactly causal",
    ]
    assert legends[2] == ["significantly worse", "no difference can be told"]
    drawn = [len(find_all(driver, f".stack g.{effect}")) for effect in ("better", "worse", "unclear", "same")]
    assert drawn == [1, 1, 8, 1]
    assert find_all(driver, ".stack g.same line") == []
    assert [len(find_all(driver, f".forest g.{effect}")) for effect in ("better", "worse", "unclear")] == [0, 3, 3]


def test_pointing_at_a_figure_gives_its_numbers(driver: Any, tmp_path: Path) -> None:
    open_page(driver, tmp_path, finding())
    curve, alone, *panels = find_all(driver, ".along .plot > svg")
    assert point_at(driver, curve, 0.03) == "1 layer: 25.0 points (22.0 to 27.0)"
    assert point_at(driver, curve, 0.63).startswith("8 layers: 60.0 points (57.0 to 62.0), the turning point")
    assert find_all(driver, ".stack .card .hint")[0].is_displayed()
    minus = "\N{MINUS SIGN}"
    assert point_at(driver, alone, 0.01) == (
        f"Layer 0: opened alone {minus}6.0 ({minus}8.0 to {minus}4.0), p = 0.002; moves vectors by 0.000562; "
        "attention ahead 40.0 %; in common 10.0 %"
    )
    assert point_at(driver, panels[2], 0.46).endswith("attention ahead \N{EN DASH}; in common 21.2 %")
    assert point_at(driver, panels[0], 0.3).startswith("Layer 3: cannot be opened; attention ahead \N{EN DASH}; in")
    assert point_at(driver, panels[1], 0.99).startswith("Layer 11: a no-op when it alone is open; attention")
    guides = find_all(driver, ".stack .guide")
    assert len(guides) == 4
    assert all(guide.get_attribute("hidden") is None for guide in guides)
    assert len({guide.get_attribute("x1") for guide in guides}) == 1
    assert len(find_all(driver, ".stack circle.chosen")) == 2
    assert complaints(driver) == []


def test_both_tables_sort_and_leave_each_other_alone(driver: Any, tmp_path: Path) -> None:
    open_page(driver, tmp_path, finding())
    find(driver, "summary").click()
    for table, column in ((ALL, 2), (LAYER_BY_LAYER, 4), (ALL, 5)):
        other = LAYER_BY_LAYER if table == ALL else ALL
        before, others = values(driver, column, table), values(driver, 0, other)
        assert len(set(before)) > 5
        heading = find_all(driver, f"{table} thead button")[column]
        heading.click()
        assert values(driver, column, table) == sorted(before, reverse=True)
        heading.click()
        assert values(driver, column, table) == sorted(before)
        assert values(driver, 0, other) == others
        find_all(driver, f"{table} thead button")[0].click()
        assert values(driver, column, table) == before
    find_all(driver, f"{ALL} thead button")[3].click()
    assert values(driver, 3, ALL)[0] == 0.0004


def test_the_table_of_candidates_says_what_they_are(driver: Any, tmp_path: Path) -> None:
    open_page(driver, tmp_path, finding())
    rows = [" ".join(row.text.split()) for row in find_all(driver, f"{ALL} tbody tr")]
    minus = "\N{MINUS SIGN}"
    assert (
        rows[0]
        == "layer 2 62.5 59.5 to 64.5 +2.5 \N{BLACK UP-POINTING TRIANGLE} 1.4 to 3.6 0.010 +32.5 29.5 to 35.5 0.000205"
    )
    assert "causal baseline 60.0 57.0 to 62.0 +30.0 27.0 to 33.0 0.000000" in rows
    assert "last:1 60.0 57.0 to 62.0 0.0 no-op +30.0 27.0 to 33.0 0.000000" in rows
    assert rows[-1].startswith(
        f"all 30.0 27.0 to 32.0 {minus}30.0 \N{BLACK DOWN-POINTING TRIANGLE} {minus}38.0 to {minus}22.0 < 0.001"
    )


def test_the_table_of_trained_maps_has_every_round(driver: Any, tmp_path: Path) -> None:
    open_page(driver, tmp_path, trained(data="<b>herons</b>.jsonl"))
    head, *rows = [" ".join(row.text.split()) for row in find_all(driver, "section[aria-labelledby=trained] tr")]
    dash, minus = "\N{EN DASH}", "\N{MINUS SIGN}"
    assert head == "Map Step 8 Step 16 Over causal p Over all"
    assert rows == [
        f"last:4 71.0 68.0 to 73.0 74.0 71.0 to 76.0 +4.0 {BETTER} 3.0 to 5.0 0.010 +20.0 18.0 to 22.0",
        "causal baseline 70.0 67.0 to 72.0 70.0 67.0 to 72.0 +20.0 18.0 to 22.0",
        f"all 50.0 47.0 to 52.0 58.0 55.0 to 60.0 {minus}12.0 {WORSE} {minus}13.0 to {minus}11.0 0.001 "
        "+20.0 18.0 to 22.0",
        f"layer 2 70.2 67.2 to 72.2 {dash} +0.2 {minus}0.8 to 1.2 1.000 +20.0 18.0 to 22.0",
    ]
    note = find(driver, "section[aria-labelledby=trained] .note").text
    assert note.startswith(
        "4 maps to step 8, 3 to 16 (causal and all open stay to the end): 56 steps of 64 rows, learned"
    )
    assert "from <b>herons</b>.jsonl." in note


def test_what_it_takes_to_do_it_again(driver: Any, tmp_path: Path) -> None:
    open_page(driver, tmp_path, finding())
    metadata = {line.split("\n")[0]: line.split("\n")[1] for line in (each.text for each in find_all(driver, "dl div"))}
    assert metadata["source"] == "models/heron"
    assert metadata["dev"] == "STSBenchmark-dev"
    assert metadata["seed"] == "0"
    assert metadata["versions"] == "bellm 0.4.0, torch 2.9.0"
    assert metadata["template"] == 'This sentence : "{text}" means:"'


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("found", [trained(), nothing_open()], ids=["trained", "nothing to open"])
def test_the_page_fits_its_screen_and_no_words_lie_on_others(
    driver: Any, tmp_path: Path, found: Finding, width: int
) -> None:
    open_page(driver, tmp_path, found, width=width, height=740)
    scrolled, inner = driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert scrolled <= inner == width
    assert overlaps(driver, WORDS) == []


def test_hostile_texts_are_shown_and_do_nothing(driver: Any, tmp_path: Path) -> None:
    found = hostile()
    write_layer_page(found, record_of(found, source=HOSTILE[1]), tmp_path / "layers.html")
    visit(driver, tmp_path / "layers.html")
    point_at(driver, find(driver, ".along .plot > svg"), 0.5)
    assert find(driver, ".kicker").get_property("textContent") == f"bellm layers: {HOSTILE[1]} on {HOSTILE[0]}"
    assert HOSTILE[1] in find_all(driver, ".summary li")[1].get_property("textContent")
    assert HOSTILE[3] in [row.get_property("textContent") for row in find_all(driver, f"{ALL} tbody th")]
    assert driver.title.endswith("bellm")
    assert len(find_all(driver, "script")) == 2
    assert find_all(driver, "img, [onerror], [onmouseover]") == []
    assert complaints(driver) == []
    assert len(requests(driver)) == 1


def test_the_numbers_are_in_the_page_for_programs(tmp_path: Path) -> None:
    found = finding()
    write_layer_page(found, record_of(found), tmp_path / "layers.html")
    page = (tmp_path / "layers.html").read_text(encoding="utf-8")
    results = re.search(r'<script type="application/json" id="results">(.*)</script>', page)
    assert results is not None
    assert json.loads(results[1]) == record_of(found)


def test_the_page_can_be_read_without_scripts(driver: Any, tmp_path: Path) -> None:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        open_page(driver, tmp_path, finding())
        assert find(driver, "h1").text == "Without training, layer 2 beats causal"
        assert len(find_all(driver, ".along circle")) == LAYERS + 8 + 9 + 10 + LAYERS
        find(driver, "summary").click()
        assert find(driver, LAYER_BY_LAYER).is_displayed()
    finally:
        driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_a_page_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "layers.html"
    file.mkdir()
    found = finding()
    with pytest.raises(SourceError, match=r"layers.html cannot be written: "):
        write_layer_page(found, record_of(found), file)
    assert list(tmp_path.iterdir()) == [file]


def test_markup_in_names_and_sentences_is_text(tmp_path: Path) -> None:
    for found in (hostile(), trained(data=HOSTILE[2])):
        write_layer_page(found, record_of(found, source=HOSTILE[1]), tmp_path / "layers.html")
        assert_no_markup_from_outside(tmp_path / "layers.html", num_scripts=2)
