"""The page of a model's spectra in a real browser."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM

from bellm import BellmError
from bellm.compress import layer_alphas, measure_spectra, write_spectra
from tests.report.browser import complaints, find, find_all, is_light, requests, visit


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_renders_alone_and_without_complaint(
    driver: Any, tmp_path: Path, tiny_model: LlamaForCausalLM, scheme: str
) -> None:
    spectra = measure_spectra(tiny_model)
    record = write_spectra("models/<b>heron</b>", spectra, tmp_path)
    assert record == json.loads((tmp_path / "spectra.json").read_text())
    visit(driver, tmp_path / "spectra.html", scheme=scheme)
    assert find(driver, "h1").text == "How heavy the tails of the spectra are"
    assert [heading.get_attribute("id") for heading in find_all(driver, "h2")] == ["layers", "matrices", "again"]
    assert "<b>heron</b>" in find(driver, ".kicker").get_property("textContent")
    cells = [text.get_property("textContent") for text in find_all(driver, "svg.heat g > text")]
    assert cells == [f"{spectrum.peak:.2f}" for spectrum in spectra]
    assert len(find_all(driver, "figure .plot")) == 2
    assert complaints(driver) == []
    assert requests(driver) == [(tmp_path / "spectra.html").as_uri()]
    assert is_light(driver) == (scheme == "light")


def test_the_summary_names_the_extremes(tiny_model: LlamaForCausalLM, tmp_path: Path) -> None:
    spectra = measure_spectra(tiny_model)
    alphas = layer_alphas(spectra)
    said = write_spectra("heron", spectra, tmp_path)["summary"]
    assert f"Layer {alphas.index(min(alphas))} has the heaviest tails (mean exponent {min(alphas):.2f})" in said
    assert f"layer {alphas.index(max(alphas))} the lightest" in said


def test_spectra_of_another_model_are_kept(tiny_model: LlamaForCausalLM, tmp_path: Path) -> None:
    spectra = measure_spectra(tiny_model)
    write_spectra("heron", spectra, tmp_path)
    write_spectra("heron", spectra, tmp_path)
    with pytest.raises(BellmError, match=r"is about heron. Choose another folder"):
        write_spectra("crane", spectra, tmp_path)
