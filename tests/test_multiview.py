"""Several vectors of a text as one: identities, one forward pass, folders, and every command on such a folder."""

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.stats import spearmanr
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner, Result

from bellm import BellmError, Encoder, MultiViewEncoder
from bellm.cli import app
from bellm.errors import FingerprintError, SourceError, TruncationWarning
from bellm.evaluate import EvaluatedModel
from bellm.multiview import View, choose_weight
from bellm.tensors.similarity import cosine_similarity, normalize_rows
from bellm.types import InputType, Vectors

from .backbone.test_routing import EXPERTS
from .decoders import with_tokens_of
from .processes import run

TEXTS = ["A heron waits.", "The invoice was paid twice.", "Why does bread rise?", "", "A heron waits."]


@pytest.fixture(scope="module")
def experts(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    model = with_tokens_of(tiny_tokenizer, "olmoe")
    return Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, bidirectional="last:2")


@pytest.fixture(scope="module")
def moee(experts: Encoder) -> MultiViewEncoder:
    return MultiViewEncoder.moee(experts, alpha=0.5)


@pytest.fixture(scope="module")
def folder(moee: MultiViewEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("views") / "moee"
    moee.save_pretrained(path)
    return path


def bellm(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def cosines(encoder: Any) -> Vectors:
    vectors = encoder.encode(TEXTS)
    return cosine_similarity(vectors, vectors)


class Planted:
    """An embedder of numbers that stand in the text."""

    def __init__(self, read: Callable[[float], Sequence[float]]) -> None:
        self.read, self.embedding_dim = read, len(read(1.0))

    def encode(self, texts: Sequence[str], *, input_type: InputType = "text") -> Vectors:
        return np.array([self.read(float(text)) for text in texts], dtype=np.float32)

    def fingerprint(self) -> Vectors:
        return self.encode(["1", "2"])

    def describe(self) -> dict[str, Any]:
        return {}


# Identities


def test_dot_products_are_weighted_sums_of_cosines(experts: Encoder, tiny_encoder: Encoder) -> None:
    views = [experts, experts.replace(readout="routing"), tiny_encoder]
    parts = [cosines(view) for view in views]
    summed = MultiViewEncoder(views, method="sum", weights=(1, 0.5, 2)).encode(TEXTS)
    np.testing.assert_allclose(summed @ summed.T, parts[0] + 0.5 * parts[1] + 2 * parts[2], atol=1e-5)
    beside = MultiViewEncoder(views).encode(TEXTS)
    np.testing.assert_allclose(beside @ beside.T, sum(parts) / 3, atol=2e-6)
    assert beside.shape == (5, 32 + 16 + 32)
    weighted = MultiViewEncoder(views, weights=(1, 0.5, 2))
    np.testing.assert_allclose(cosines(weighted), (summed @ summed.T) / 3.5, atol=2e-6)


@pytest.mark.filterwarnings("ignore:Layers .* have no experts")
@pytest.mark.parametrize("name", EXPERTS)
def test_states_and_routing_of_every_architecture_are_combined(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = with_tokens_of(tiny_tokenizer, name)
    summed = MultiViewEncoder.moee(Encoder.from_pretrained(model, tokenizer=tiny_tokenizer), alpha=0.5)
    hidden, routing = (cosines(view) for view in summed.embedders)
    vectors = summed.encode(TEXTS)
    np.testing.assert_allclose(vectors @ vectors.T, hidden + 0.5 * routing, rtol=0, atol=1e-6)
    beside = MultiViewEncoder(summed.embedders).encode(TEXTS)
    np.testing.assert_allclose(beside @ beside.T, (hidden + routing) / 2, rtol=0, atol=1e-6)
    for text, vector in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(summed.encode(text), vector, rtol=0, atol=1e-6)


def test_prompts_are_averaged(tiny_encoder: Encoder) -> None:
    encoder = MultiViewEncoder.prompts(tiny_encoder, ["prompteol", "angle"])
    parts = [tiny_encoder.replace(prompt=prompt, normalize=True).encode(TEXTS) for prompt in ("prompteol", "angle")]
    np.testing.assert_allclose(encoder.encode(TEXTS), sum(parts) / 2, atol=1e-6)
    usual = [view.config.prompt.name for view in MultiViewEncoder.prompts(tiny_encoder).embedders]  # type: ignore[attr-defined]
    assert usual == ["meta-topic", "meta-mood", "meta-fact", "meta-sense"]


def test_habits_work_or_are_refused_in_one_line(tiny_encoder: Encoder) -> None:
    encoder = MultiViewEncoder.prompts(tiny_encoder, ["prompteol", "angle"])
    one = encoder.encode(TEXTS[0], batch_size=2, show_progress_bar=False, convert_to_numpy=True)
    assert one.shape == (encoder.embedding_dim,)
    np.testing.assert_allclose(one, encoder.encode(TEXTS[:1])[0], atol=1e-6)
    for habits, words in (
        ({"normalize_embeddings": True}, "normalize does not change for one call here"),
        ({"convert_to_tensor": True}, "Write torch.from_numpy"),
        ({"max_length": 9}, "max_length"),
    ):
        with pytest.raises(BellmError, match=words):
            encoder.encode(TEXTS, **habits)


def test_sum_of_states_and_routing_is_what_the_paper_says(experts: Encoder, moee: MultiViewEncoder) -> None:
    states = normalize_rows(experts.encode(TEXTS))
    routing = normalize_rows(experts.replace(readout="routing").encode(TEXTS))
    wanted = np.concatenate([states, np.sqrt(0.5) * routing], 1)
    np.testing.assert_allclose(moee.encode(TEXTS), wanted, atol=2e-6)
    alone = np.concatenate([moee.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, wanted, atol=2e-6)


def test_views_of_the_same_pass_run_once(experts: Encoder, moee: MultiViewEncoder) -> None:
    views = [experts.replace(layer=-1, truncate_dim=8), *moee.embedders, experts.replace(prompt="raw")]
    encoder = MultiViewEncoder(views)
    assert encoder._passes() == [[0, 1, 2], [3]]
    wanted = np.concatenate([normalize_rows(view.encode(TEXTS)) for view in views], 1) / 2
    np.testing.assert_allclose(encoder.encode(TEXTS), wanted, atol=2e-6)
    stats = moee.encode_with_stats(TEXTS)
    assert stats.num_tokens == experts.encode_with_stats(TEXTS).num_tokens


def test_texts_that_a_view_cuts_are_counted(experts: Encoder, tiny_encoder: Encoder) -> None:
    encoder = MultiViewEncoder([tiny_encoder, MultiViewEncoder.moee(experts, alpha=1.0)])
    texts = [*TEXTS, "Two trains leave the station at noon. " * 6]
    assert (encoder.max_tokens, encoder.count_tokens(texts)[1]) == (64, 1)
    for views in (encoder.views, encoder.views[::-1]):
        assert MultiViewEncoder(views).encode_with_stats(texts).num_truncated == 1
    assert EvaluatedModel.of(encoder).num_truncated(texts) == 1
    with pytest.warns(TruncationWarning, match="1 of 6 texts were cut to 64 tokens"):
        encoder.encode(texts)


def test_a_view_may_change_the_text(tiny_encoder: Encoder) -> None:
    encoder = MultiViewEncoder([tiny_encoder, View(tiny_encoder, str.upper)])
    upper = normalize_rows(tiny_encoder.encode([text.upper() for text in TEXTS]))
    np.testing.assert_allclose(encoder.encode(TEXTS)[:, 32:], upper / np.sqrt(2), atol=2e-6)


# Weights that texts choose


def test_texts_choose_the_weight_that_agrees_with_both_views() -> None:
    first = Planted(lambda number: [np.cos(number), np.sin(number)])
    second = Planted(lambda number: [np.cos(number * number), np.sin(number * number), 0.5])
    texts = [str(number / 7) for number in range(20)]
    chosen = choose_weight([first, second], texts)
    upper = np.triu_indices(20, 1)
    parts = [cosine_similarity(view.encode(texts), view.encode(texts))[upper] for view in (first, second)]

    def agreement(weight: float) -> float:
        return float(sum(spearmanr(parts[0] + weight * parts[1], part).statistic for part in parts))

    best = max(agreement(2**power) for power in np.arange(-6, 6.25, 0.25))
    assert agreement(chosen) == pytest.approx(best, abs=1e-3)
    assert best > max(agreement(1e-6), agreement(1e6)) + 0.01


def test_the_chosen_weight_is_saved_with_where_it_came_from(experts: Encoder, tmp_path: Path) -> None:
    texts = [f"Heron number {number} waits for {number + 3} fish." for number in range(12)]
    encoder = MultiViewEncoder.moee(experts, texts=texts)
    encoder.save_pretrained(tmp_path / "moee")
    again = MultiViewEncoder.from_pretrained(tmp_path / "moee")
    assert again.weights == encoder.weights
    assert again.weights_from == "agreement on 12 texts"
    with pytest.raises(BellmError, match="1 different texts are too few to choose a weight: give at least 10"):
        MultiViewEncoder.moee(experts, texts=["A heron."] * 20)


# Refusals


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"views": []}, "views is empty"),
        ({"views": 1}, "give at least two"),
        ({"weights": (1.0,)}, "1 weights for 2 views"),
        ({"weights": (1.0, -1.0)}, "not all above 0"),
        ({"weights": (1.0, float("nan"))}, "not all above 0"),
        ({"method": "stack"}, "method='stack' is not one of concat, sum, mean"),
        ({"method": "mean"}, r"views of one width, and these have \[32, 16\]"),
    ],
    ids=str,
)
def test_views_that_cannot_be_combined_are_refused(
    moee: MultiViewEncoder, arguments: dict[str, Any], said: str
) -> None:
    views = arguments.pop("views", 2)
    views = list(moee.embedders[:views]) if isinstance(views, int) else views
    with pytest.raises(BellmError, match=said):
        MultiViewEncoder(views, **arguments)


def test_what_cannot_be_saved_leaves_nothing(tiny_encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"View 2 is no encoder of bellm, or has a function before it"):
        MultiViewEncoder([tiny_encoder, View(tiny_encoder, str.upper)]).save_pretrained(tmp_path / "views")
    assert list(tmp_path.iterdir()) == []


# Folders


@pytest.mark.slow
def test_a_folder_embeds_and_searches_a_corpus_in_new_processes(
    moee: MultiViewEncoder, folder: Path, tmp_path: Path
) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "fingerprint.safetensors",
        "modules.json",
        "view-1",
        "views.json",
    ]
    texts, corpus = [text for text in TEXTS if text], tmp_path / "corpus"
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "bellm"]
    done = run([*command, "embed", folder, tmp_path / "texts.txt", "-o", corpus, "--keep-text"])
    assert (done.returncode, done.stderr) == (0, "")
    assert bellm("index", corpus).exit_code == 0
    shard = pq.read_table(next(corpus.rglob("*.parquet")))
    vectors = np.stack(shard.column("vector").to_numpy())
    np.testing.assert_allclose(vectors, moee.encode(texts), atol=2e-6)
    done = run([*command, "search", texts[1], "--in", corpus, "--json"])
    hits = json.loads(done.stdout)["hits"]
    scores = moee.similarity(moee.encode_query(texts[1]), moee.encode(texts))[0]
    assert [hit["text"] for hit in hits[:2]] == [texts[row] for row in np.argsort(-scores)[:2]]
    assert hits[0]["score"] == pytest.approx(1, abs=1e-5)


def test_views_of_views_and_of_other_weights_are_saved(
    moee: MultiViewEncoder, tiny_encoder: Encoder, tmp_path: Path
) -> None:
    encoder = MultiViewEncoder([moee, tiny_encoder, tiny_encoder.replace(prompt="raw")], weights=(2, 1, 1))
    encoder.save_pretrained(tmp_path / "views")
    again = MultiViewEncoder.from_pretrained(tmp_path / "views")
    np.testing.assert_allclose(again.encode(TEXTS), encoder.encode(TEXTS), atol=2e-6)
    assert again.describe()["views"] == encoder.describe()["views"]
    assert again.weights_digest() == encoder.weights_digest()


def test_a_folder_that_was_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    record = json.loads((changed / "views.json").read_text())
    (changed / "views.json").write_text(json.dumps(record | {"weights": [1.0, 0.6]}))
    with pytest.raises(FingerprintError, match=r"views\.json was changed after saving"):
        MultiViewEncoder.from_pretrained(changed)
    (changed / "views.json").write_text(json.dumps(record))
    with safe_open(changed / "fingerprint.safetensors", "numpy") as file:
        vectors, metadata = file.get_tensor("vectors"), file.metadata()
    save_file({"vectors": 1.01 * vectors}, changed / "fingerprint.safetensors", metadata=metadata)
    with pytest.raises(FingerprintError, match=r"does not give the vectors it was saved with \(relative distance 0\.0"):
        MultiViewEncoder.from_pretrained(changed)
    with pytest.raises(SourceError, match=r"has no views\.json"):
        MultiViewEncoder.from_pretrained(folder / "view-1")


def test_info_reads_what_the_files_say_of_the_views(folder: Path, moee: MultiViewEncoder) -> None:
    program = (
        "import sys; sys.modules.update(torch=None, transformers=None); from bellm.cli import app; app(sys.argv[1:])"
    )
    done = run([sys.executable, "-c", program, "info", folder, "--json"])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"source": str(folder), **moee.describe()}
    shown = bellm("info", folder)
    assert "view 2" in shown.stdout
    assert "readout=routing" in shown.stdout
    assert bellm("info", folder, "--device", "cpu").stdout == shown.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"views": [{"folder": "../moee"}]}, "a view's folder is none in this folder"),
        ({"views": []}, "a view's folder is none in this folder"),
        ({"views": ["view-1"]}, "it lists no views with their folders"),
        ({"views": [{"folder": "view-1", "transform": "tree"}]}, "transform tree is not known"),
        ({"weights": ...}, "weights is missing"),
    ],
)
def test_a_list_of_views_that_cannot_be_read_is_told(
    folder: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    changed = Path(shutil.copytree(folder, tmp_path / "changed"))
    record = json.loads((changed / "views.json").read_text()) | change
    (changed / "views.json").write_text(json.dumps({name: value for name, value in record.items() if value != ...}))
    for command in ("info", "doctor"):
        result = bellm(command, changed)
        assert result.exit_code == 1
        assert said in result.stderr
        assert len(result.stderr.splitlines()) == 1


def test_what_takes_one_encoder_says_so(folder: Path) -> None:
    with pytest.raises(SourceError, match="holds several views, and this takes one encoder: give a view"):
        Encoder.from_pretrained(folder)
    result = bellm("similarity", folder, "a b", "c d", "--pooling", "mean")
    assert result.exit_code == 1
    assert "views with settings of their own: leave pooling out" in result.stderr


# Commands


def test_combine_writes_a_source_for_every_command(experts: Encoder, moee: MultiViewEncoder, tmp_path: Path) -> None:
    experts.save_pretrained(tmp_path / "olmoe")
    sources = (tmp_path / "olmoe", f"{tmp_path / 'olmoe'}?readout=routing")
    out = tmp_path / "moee"
    result = bellm("combine", *sources, "-o", out, "--method", "sum", "--weights", "1,0.5")
    assert result.stdout == f"{out}: 2 views, sum with weights 1, 0.5 (given), 48 dimensions\n"
    texts = [text for text in TEXTS if text]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")

    found = json.loads(bellm("similarity", out, texts[0], texts[1], "--json").stdout)
    assert found["cosines"][0] == pytest.approx(float(cosines(moee)[0, 1]), abs=1e-5)

    hits = json.loads(bellm("search", out, texts[2], "--in", tmp_path / "texts.txt", "--json").stdout)
    assert (hits["hits"][0]["row"], hits["hits"][0]["score"]) == (3, pytest.approx(1, abs=1e-5))

    (tmp_path / "pairs.tsv").write_text(
        "sentence1\tsentence2\tscore\n"
        + "".join(f"{left}\t{right}\t{len(left) % 5}\n" for left in texts[:3] for right in texts[:3])
    )
    options = ("--tasks", tmp_path / "pairs.tsv", "-o", tmp_path / "report", "--cache", tmp_path / "cache", "--json")
    report = json.loads(bellm("evaluate", out, sources[0], *options, "--resamples", 100).stdout)
    assert [run["model"] for run in (report, *report["compared"])] == [str(out), str(sources[0])]
    assert report["metadata"]["weights"] == [1, 0.5]

    options = ("--dev", tmp_path / "pairs.tsv", "-o", tmp_path / "layers", "--cache", tmp_path / "cache", "--json")
    found = json.loads(bellm("layers", out, *options, "--method", "search").stdout)
    assert {candidate["bidirectional"] for candidate in found["candidates"]} > {"none", "all", "last:2"}
    assert found["metadata"]["weights"] == [1, 0.5]

    diagnosis = json.loads(bellm("doctor", out, "--json").stdout)
    assert diagnosis["healthy"]
    assert {check["name"].partition(":")[0] for check in diagnosis["checks"]} > {"view 1", "view 2"}
    assert "view 2" in bellm("info", out).stdout


def test_combine_chooses_a_weight_by_texts(tiny_folder: Path, tmp_path: Path) -> None:
    lines = [f"{number} herons wait for {number * number} fish in the water." for number in range(15)]
    (tmp_path / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    sources = (tiny_folder, f"{tiny_folder}?prompt=raw&pooling=mean")
    chosen = ("--weights", "auto", "--texts", tmp_path / "texts.txt", "--method", "sum", "--json")
    record = json.loads(bellm("combine", *sources, "-o", tmp_path / "out", *chosen).stdout)
    assert record["weights_from"] == "agreement on 15 texts"
    assert record["weights"][1] in set(2.0 ** np.arange(-6, 6.25, 0.25))
