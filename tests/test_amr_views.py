"""Views of AMR graphs: vectors, folders, identities, and every command on an encoder that has one."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from typer.testing import CliRunner, Result

from bellm import BellmError, Encoder, MultiViewEncoder, multiview
from bellm.cli import app
from bellm.corpus import embed_corpus, search_corpus
from bellm.data.amr import linearize, read_graphs
from bellm.doctor import diagnose
from bellm.errors import BellmWarning, FingerprintError, SourceError
from bellm.multiview import View, choose_weight, open_encoder
from bellm.tensors.similarity import normalize_rows

from .processes import run

GRAPHS = {
    "A heron waits.": "(w / wait-01 :ARG1 (h / heron))",
    "Herons wait for fish.": "(w / wait-01 :ARG1 (h / heron) :ARG2 (f / fish))",
    "The invoice was paid twice.": "(p / pay-01 :ARG1 (i / invoice) :frequency 2)",
}
TEXTS = [*GRAPHS, "Bread rises."]
READ = [*map(linearize, GRAPHS.values()), "Bread rises."]
MISSING = "1 of 4 texts have no AMR graph, and are read as they are"


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graphs") / "birds.amr"
    path.write_text("\n\n".join(f"# ::snt {text}\n{graph}" for text, graph in GRAPHS.items()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def bare(tiny_encoder: Encoder) -> MultiViewEncoder:
    """Without graphs."""
    return MultiViewEncoder.amr(tiny_encoder)


@pytest.fixture(scope="module")
def both(bare: MultiViewEncoder, sidecar: Path) -> MultiViewEncoder:
    return bare.with_graphs(read_graphs(sidecar))


@pytest.fixture(scope="module")
def folder(bare: MultiViewEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("views") / "both"
    bare.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def wanted(tiny_encoder: Encoder) -> Any:
    return np.concatenate([normalize_rows(tiny_encoder.encode(texts)) for texts in (TEXTS, READ)], 1) / np.sqrt(2)


def bellm(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_view_reads_graphs_and_texts_without_one(both: MultiViewEncoder, wanted: Any) -> None:
    with pytest.warns(BellmWarning, match=MISSING):
        np.testing.assert_allclose(both.encode(TEXTS), wanted, atol=2e-6)
    assert both.encode_with_stats([*TEXTS, "Bread rises."]).num_missing_graphs == 2


def test_without_graphs_it_says_how_to_give_them(bare: MultiViewEncoder, tiny_encoder: Encoder) -> None:
    with pytest.raises(BellmError, match=r"reads AMR graphs, and none are given: --graphs FILE"):
        bare.encode(TEXTS)
    with pytest.raises(BellmError, match="has no view of AMR graphs"):
        MultiViewEncoder([tiny_encoder, tiny_encoder]).with_graphs(read_graphs_of(GRAPHS))
    with pytest.raises(BellmError, match="transform='graph' is not one of amr"):
        MultiViewEncoder([View(tiny_encoder, "graph")])  # type: ignore[arg-type]


def read_graphs_of(graphs: dict[str, str]) -> Any:
    return multiview.Graphs({text: linearize(graph) for text, graph in graphs.items()}, "test")


def test_one_view_of_graphs_is_an_encoder_and_a_view_of_others(tiny_encoder: Encoder, sidecar: Path) -> None:
    alone = MultiViewEncoder([View(tiny_encoder, "amr")])
    assert MultiViewEncoder([tiny_encoder, alone]).views == (View(tiny_encoder), View(tiny_encoder, "amr"))
    alone = alone.with_graphs(read_graphs(sidecar))
    np.testing.assert_allclose(alone.encode(TEXTS[:3]), normalize_rows(tiny_encoder.encode(READ[:3])), atol=2e-6)


def test_views_within_views_get_the_graphs(both: MultiViewEncoder, tiny_encoder: Encoder, sidecar: Path) -> None:
    inner = MultiViewEncoder([tiny_encoder, View(tiny_encoder, "amr")])
    outer = MultiViewEncoder([inner, tiny_encoder.replace(prompt="raw")]).with_graphs(read_graphs(sidecar))
    np.testing.assert_allclose(outer.encode(TEXTS[:3])[:, :64], both.encode(TEXTS[:3]) / np.sqrt(2), atol=2e-6)
    assert inner.graphs is None


def test_the_fingerprint_covers_the_transform_and_no_file(
    both: MultiViewEncoder, bare: MultiViewEncoder, tiny_encoder: Encoder
) -> None:
    texts_alone = MultiViewEncoder([tiny_encoder, tiny_encoder])
    assert np.array_equal(both.fingerprint(), bare.fingerprint())
    assert np.abs(both.fingerprint() - texts_alone.fingerprint()).max() > 0.01
    assert both.weights_digest() == texts_alone.weights_digest()


def test_the_file_of_graphs_is_part_of_the_description(both: MultiViewEncoder, bare: MultiViewEncoder) -> None:
    assert bare.describe()["graphs"] == "none given"
    assert both.describe()["graphs"] == both.graphs.digest  # type: ignore[union-attr]
    assert [view.get("transform") for view in both.describe()["views"]] == [None, "amr"]


def test_a_weight_is_chosen_on_texts_and_their_graphs(tiny_encoder: Encoder) -> None:
    texts = {f"{number} herons wait.": f"(w / wait-01 :ARG1 (h / heron :quant {number}))" for number in range(12)}
    views = [tiny_encoder, MultiViewEncoder([View(tiny_encoder, "amr")]).with_graphs(read_graphs_of(texts))]
    assert choose_weight(views, list(texts)) in set(2.0 ** np.arange(-6, 6.25, 0.25))


# Folders


def test_a_folder_gives_the_same_vectors_in_a_new_process(
    folder: Path, both: MultiViewEncoder, sidecar: Path, tmp_path: Path
) -> None:
    assert [view.get("transform") for view in json.loads((folder / "views.json").read_text())["views"]] == [None, "amr"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "fingerprint.safetensors",
        "modules.json",
        "view-1",
        "views.json",
    ]
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "bellm", "embed", str(folder), str(tmp_path / "texts.txt"), "--graphs"]
    result = run([*command, str(sidecar), "-o", str(tmp_path / "v.npy")])
    assert (result.returncode, MISSING in result.stderr) == (0, True)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), both.encode_with_stats(TEXTS).vectors, atol=2e-6)


def test_another_linearization_or_transform_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = read_graphs_of(dict.fromkeys(multiview.FINGERPRINT_TEXTS, "(s / snow)"))
    monkeypatch.setattr(multiview, "fingerprint_graphs", lambda: other)
    with pytest.raises(FingerprintError, match="does not give the vectors it was saved with"):
        MultiViewEncoder.from_pretrained(folder)
    record = json.loads((folder / "views.json").read_text())
    record["views"][1]["transform"] = "graph"
    (tmp_path / "views.json").write_text(json.dumps(record))
    with pytest.raises(SourceError, match="transform graph is not known"):
        MultiViewEncoder.from_pretrained(tmp_path)


def test_a_source_names_its_transform(tiny_folder: Path, sidecar: Path) -> None:
    encoder = open_encoder(f"{tiny_folder}?transform=amr&pooling=mean", graphs=sidecar)
    assert isinstance(encoder, MultiViewEncoder)
    assert (encoder.views[0].transform, encoder.describe()["views"][0]["pooling"]) == ("amr", "mean")
    with pytest.raises(BellmError, match="transform='tree' is not one of amr"):
        open_encoder(f"{tiny_folder}?transform=tree")
    # A corpus knows a view by its source alone.
    with pytest.raises(BellmError, match=r"a view with settings of its own: write .*\?transform=amr&prompt="):
        open_encoder(f"{tiny_folder}?transform=amr", prompt="raw")
    with pytest.raises(BellmError, match=r"has no view of AMR graphs: leave --graphs .*birds\.amr out"):
        open_encoder(str(tiny_folder), graphs=sidecar)


# Commands


def test_a_corpus_is_embedded_and_searched(folder: Path, sidecar: Path, both: MultiViewEncoder, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    corpus = tmp_path / "corpus"
    refused = bellm("embed", folder, tmp_path / "texts.txt", "-o", corpus)
    assert (refused.exit_code, "reads AMR graphs, and none are given" in refused.stderr, corpus.exists()) == (
        1,
        True,
        False,
    )
    result = bellm("embed", folder, tmp_path / "texts.txt", "-o", corpus, "--graphs", sidecar, "--keep-text", "--json")
    assert (json.loads(result.stdout)["missing_graphs"], MISSING in result.stderr) == (1, True)
    assert bellm("index", corpus).exit_code == 0
    result = bellm("search", TEXTS[1], "--in", corpus, "--graphs", sidecar, "--json")
    hit = json.loads(result.stdout)["hits"][0]
    assert (hit["row"], hit["score"]) == (2, pytest.approx(1, abs=1e-5))
    with pytest.raises(BellmError, match="reads AMR graphs, and none are given"):
        search_corpus(TEXTS[1], corpus)
    with pytest.raises(SourceError, match=r"graphs is .* there and .* here"):
        embed_corpus(both.with_graphs(read_graphs_of({"Snow": "(s / snow)"})), [tmp_path / "texts.txt"], corpus)


def test_commands_take_graphs(folder: Path, tiny_folder: Path, sidecar: Path, tmp_path: Path) -> None:
    graphs = ("--graphs", sidecar)
    cosine = json.loads(bellm("similarity", folder, TEXTS[0], TEXTS[1], *graphs, "--json").stdout)["cosines"][0]
    assert 0 < cosine < 1
    rows = "".join(f"{left}\t{right}\t{len(left) % 5}\n" for left in TEXTS for right in TEXTS)
    (tmp_path / "pairs.tsv").write_text(f"sentence1\tsentence2\tscore\n{rows}")
    options = ("--tasks", tmp_path / "pairs.tsv", "-o", tmp_path / "report", "--cache", tmp_path / "cache", "--json")
    sources = (tiny_folder, f"{tiny_folder}?transform=amr", folder)
    result = bellm("evaluate", *sources, *graphs, *options, "--resamples", 100)
    report = json.loads(result.stdout)
    assert [run["model"] for run in (report, *report["compared"])] == [*map(str, sources)]
    assert result.stderr.count(MISSING) == 1
    assert "reads AMR graphs" in bellm("evaluate", folder, *options, "--force").stderr
    assert (
        "None of these models has"
        in bellm("evaluate", tiny_folder, f"{tiny_folder}?pooling=mean", *graphs, *options, "--force").stderr
    )
    many = [f"{number} herons wait." for number in range(20)]
    (tmp_path / "many.txt").write_text("\n".join([*TEXTS, *many]))
    options = ("--texts", tmp_path / "many.txt", "-o", tmp_path / "analysis", "--cache", tmp_path / "cache")
    result = bellm("analyse", tiny_folder, folder, *graphs, *options, "--permutations", 0, "--resamples", 0)
    assert (result.exit_code, "21 of 24 texts have no AMR graph" in result.stderr) == (0, True), result.stderr
    for file in ("none.amr", "broken.amr"):
        (tmp_path / "broken.amr").write_text("# ::snt A heron.\n(h / heron\n")
        result = bellm("similarity", folder, "a", "b", "--graphs", tmp_path / file)
        assert (result.exit_code, result.stderr.count("\n") == 1 or "\n" not in result.stderr.strip()) == (1, True)


def test_doctor_and_info_need_no_graphs(folder: Path, bare: MultiViewEncoder) -> None:
    assert diagnose(bare).healthy
    assert json.loads(bellm("doctor", folder, "--json").stdout)["healthy"]
    assert "none given" in bellm("info", folder, "--json").stdout


@pytest.mark.slow
def test_layers_are_opened_in_both_views(folder: Path, both: MultiViewEncoder, sidecar: Path, tmp_path: Path) -> None:
    pairs = list(itertools.combinations(TEXTS, 2))
    rows = "".join(f"{left}\t{right}\t{score}\n" for score, (left, right) in enumerate(pairs))
    (tmp_path / "pairs.tsv").write_text(f"sentence1\tsentence2\tscore\n{rows}")
    options = ("-o", tmp_path / "layers", "--dev", tmp_path / "pairs.tsv", "--cache", tmp_path / "cache", "--json")
    assert "reads AMR graphs, and none are given" in bellm("layers", folder, *options, "--method", "search").stderr
    result = bellm("layers", folder, *options, "--method", "search", "--graphs", sidecar)
    candidates = json.loads(result.stdout)["candidates"]
    [score] = [each["score"]["value"] for each in candidates if each["bidirectional"] == "all"]
    opened = normalize_rows(both.replace(bidirectional="all").encode_with_stats(TEXTS).vectors)
    wanted = 100 * spearmanr((opened @ opened.T)[np.triu_indices(len(TEXTS), 1)], range(len(pairs))).statistic
    assert score == pytest.approx(wanted, abs=0.01)


def test_combine_makes_a_view_of_graphs(
    tiny_folder: Path, both: MultiViewEncoder, sidecar: Path, tmp_path: Path
) -> None:
    sources = (tiny_folder, f"{tiny_folder}?transform=amr")
    assert bellm("combine", *sources, "-o", tmp_path / "both").exit_code == 0
    again = MultiViewEncoder.from_pretrained(tmp_path / "both").with_graphs(read_graphs(sidecar))
    np.testing.assert_allclose(again.encode(TEXTS[:3]), both.encode(TEXTS[:3]), atol=2e-6)
    assert "belongs to --weights auto" in bellm("combine", *sources, "-o", tmp_path / "x", "--graphs", sidecar).stderr
    lines = "\n".join(f"{number} herons wait." for number in range(12))
    (tmp_path / "texts.txt").write_text(lines)
    chosen = ("--weights", "auto", "--texts", tmp_path / "texts.txt", "--graphs", sidecar)
    assert bellm("combine", *sources, "-o", tmp_path / "chosen", *chosen).exit_code == 0
