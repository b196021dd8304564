"""The pages of a server in a real browser: what they show, and that they ask nobody else."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bellm import Encoder
from bellm.corpus import build_index, embed_corpus
from bellm.serve import ServeConfig, create_app
from tests.report.browser import HOSTILE, complaints, find, find_all, requests
from tests.serve.servers import ask, serving

TEXTS = ["A heron waits for a fish.", "Snow fell all night.", "Two trains leave at noon."]


@pytest.fixture(scope="module")
def searching(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("pages")
    (folder / "t.txt").write_text("\n".join([*TEXTS, HOSTILE[0]]))
    embed_corpus(tiny_encoder, [folder / "t.txt"], folder / "out", keep_text=True)
    build_index(folder / "out")
    with serving(create_app({"tiny": tiny_encoder}, index=folder / "out")) as url:
        yield url


def visit(driver: Any, url: str, width: int = 1280) -> None:
    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    complaints(driver), requests(driver)
    driver.get(url)


def wait(driver: Any, selector: str, count: int) -> list[Any]:
    from selenium.webdriver.support.wait import WebDriverWait

    return list(
        WebDriverWait(driver, 60).until(lambda driver: len(found := find_all(driver, selector)) == count and found)
    )


def write(driver: Any, selector: str, text: str) -> None:
    driver.execute_script("document.querySelector(arguments[0]).value = arguments[1]", selector, text)


def assert_alone(driver: Any, url: str) -> None:
    """Nothing was asked of anybody but the server, and the browser has nothing to complain of."""
    assert all(address.startswith((url, "data:")) for address in requests(driver))
    assert [line for line in complaints(driver) if "favicon" not in line] == []


@pytest.mark.parametrize("width", [1280, 360])
def test_the_playground_compares_sentences(driver: Any, searching: str, tiny_encoder: Encoder, width: int) -> None:
    visit(driver, searching, width)
    wait(driver, "#model option", 2)
    texts = [*TEXTS, *HOSTILE[:2]]
    write(driver, "#sentences", "\n\n".join(texts))
    find(driver, "#compare button").click()
    opened, causal = wait(driver, "#maps figure", 2)
    assert [each.find_element("css selector", "figcaption").text for each in (opened, causal)] == ["opened", "causal"]
    with tiny_encoder.causal():
        plain = tiny_encoder.encode(texts)
    for figure, vectors in ((opened, tiny_encoder.encode(texts)), (causal, plain)):
        titles = [each.get_attribute("textContent") for each in figure.find_elements("css selector", "title")]
        shown = [float(title.rpartition(" ")[2]) for title in titles]
        assert np.allclose(shown, tiny_encoder.similarity(vectors, vectors).ravel(), atol=1e-4)
    pairs = find_all(driver, "#pairs section:first-child li strong")
    upper = np.triu_indices(len(texts), 1)
    vectors = tiny_encoder.encode(texts)
    best = np.sort(tiny_encoder.similarity(vectors, vectors)[upper])[::-1][:5]
    assert np.allclose([float(each.text) for each in pairs], best, atol=1e-3)
    assert driver.title == "bellm"  # No text became a part of the page.
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert_alone(driver, searching)


def test_the_playground_searches_the_corpus(driver: Any, searching: str) -> None:
    visit(driver, searching)
    wait(driver, "#model option", 2)
    write(driver, "#query", TEXTS[1])
    find(driver, "#search button").click()
    hits = wait(driver, "#hits li", 4)
    assert hits[0].text.split("\n") == ["1.000", TEXTS[1]]
    assert any(HOSTILE[0] in hit.text for hit in hits)
    assert_alone(driver, searching)


def test_the_playground_asks_for_a_key_and_says_what_is_wrong(driver: Any, tiny_encoder: Encoder) -> None:
    with serving(create_app(tiny_encoder, ServeConfig(api_key="sesame", max_texts=3))) as url:
        visit(driver, url)
        wait(driver, "#key-label:not([hidden])", 1)
        assert "Authorization: Bearer KEY" in find(driver, "#message").text
        write(driver, "#key", "sesame")
        find(driver, "#compare button").click()
        wait(driver, "#model option", 2)
        assert find(driver, "#search-part").is_displayed() is False
        wait(driver, "#message:not(:empty)", 1)
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(driver, 60).until(lambda driver: "input has 4 items: send 3" in find(driver, "#message").text)


def test_the_documentation_is_a_page_without_any_other(driver: Any, searching: str) -> None:
    visit(driver, f"{searching}/docs", 360)
    paths = [heading.text.split()[-1] for heading in find_all(driver, "h2")]
    document = ask(searching, "/openapi.json").body
    assert paths == list(document["paths"])
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert_alone(driver, searching)


def test_the_policy_of_a_page_allows_itself_alone(server: str) -> None:
    for path in ("/", "/docs"):
        policy = ask(server, path).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "unsafe" not in policy
        assert policy.endswith("base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def test_every_path_is_documented(server: str) -> None:
    document = ask(server, "/openapi.json").body
    names = set(document["paths"])
    assert {"/v1/embeddings", "/embed", "/", "/rerank", "/similarity", "/v2/embed", "/search", "/metrics"} <= names
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {"content": {"application/json": {"schema": {"$ref": "/none"}}}})
            name = body["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert name == "none" or name in document["components"]["schemas"], (path, method)
    guide = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
    assert all(f"{path}`" in guide for path in names)
