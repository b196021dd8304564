"""One graph holds map, readout and all that is done to vectors; `GraphEncoder` runs it without torch."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from bellm import BellmError, Encoder, GraphEncoder
from bellm.cli import app
from bellm.compress import center
from bellm.errors import SourceError, TruncationWarning
from bellm.evaluate import load_model
from bellm.export import export
from bellm.export.exporting import write_export
from bellm.multiview import open_embedder
from bellm.serve import create_app
from tests.decoders import with_tokens_of
from tests.export.exports import compared, exported
from tests.processes import run
from tests.serve.servers import ask, serving

TEXTS = ["Snow", "A heron waits.", "", "Why does bread rise in a warm kitchen?", "</s> 東京"]


@pytest.fixture(scope="module")
def folder(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "out"
    parity = export(tiny_encoder.replace(prompt="instruct", hint="Mind it.", pooling="mean-text"), "onnx", folder)
    assert parity.runtime.startswith("onnxruntime ")
    assert parity.max_difference < 1e-4
    return folder


def test_vectors_are_those_of_the_encoder(folder: Path, tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(prompt="instruct", hint="Mind it.", pooling="mean-text")
    graph = GraphEncoder.from_pretrained(folder)
    for method in ("encode", "encode_query", "encode_document"):
        found, wanted = getattr(graph, method)(TEXTS), getattr(encoder, method)(TEXTS)
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert found.dtype == np.float32
    assert graph.encode("Snow").shape == (encoder.embedding_dim,)
    assert graph.encode([]).shape == (0, encoder.embedding_dim)
    np.testing.assert_allclose(graph.encode(TEXTS, max_batch_tokens=1), encoder.encode(TEXTS), atol=1e-5)
    np.testing.assert_allclose(graph.fingerprint(), encoder.fingerprint(), atol=1e-5)
    with pytest.raises(BellmError, match="max_batch_tokens=0 is too small: give at least 1"):
        graph.encode(TEXTS, max_batch_tokens=0)
    with pytest.raises(BellmError, match="encode of a graph has no normalize: it takes input_type, max_batch_tokens"):
        graph.encode(TEXTS, normalize=True)
    vectors = graph.encode([*TEXTS, *TEXTS])
    np.testing.assert_array_equal(vectors[: len(TEXTS)], vectors[len(TEXTS) :])
    np.testing.assert_allclose(
        graph.similarity(vectors[0], vectors), encoder.similarity(vectors[0], vectors), atol=1e-6
    )
    stats, wanted = graph.encode_with_stats(TEXTS), encoder.encode_with_stats(TEXTS)
    assert (stats.num_tokens, stats.num_truncated) == (wanted.num_tokens, 0)
    assert graph.tokenize(TEXTS).ids == encoder.tokenize(TEXTS).ids
    assert {**encoder.describe(), "backend": "onnx"} == graph.describe()


def test_a_server_serves_it(folder: Path) -> None:
    graph = GraphEncoder.from_pretrained(folder)
    long = "Snow fell all night. " * 60
    with serving(create_app({"graph": graph})) as url:
        answer = ask(url, "/embed", {"inputs": [*TEXTS, long], "prompt_name": "query"})
        with pytest.warns(TruncationWarning):
            np.testing.assert_allclose(answer.body, graph.encode_query([*TEXTS, long]), atol=1e-5)
        assert answer.headers["x-truncated-texts"] == "1"
        assert answer.headers["x-compute-tokens"] == str(sum(map(len, graph.tokenize([*TEXTS, long], "query").ids)))
        assert ask(url, "/embed", {"inputs": long, "truncate": False}).status == 422
        cut = ask(url, "/embed", {"inputs": TEXTS, "dimensions": 4}).body
        np.testing.assert_allclose(cut, graph.encode(TEXTS)[:, :4], atol=1e-5)


def test_one_door_opens_every_backend(folder: Path, tiny_folder: Path) -> None:
    graph = Encoder.from_pretrained(folder, backend="onnx", num_threads=1)
    np.testing.assert_array_equal(graph.encode("Snow"), GraphEncoder.from_pretrained(folder).encode("Snow"))
    assert isinstance(Encoder.from_pretrained(tiny_folder, backend="torch"), Encoder)
    door: Any = Encoder.from_pretrained
    with pytest.raises(BellmError, match=r"backend='onxx' is not one of torch, onnx, openvino. Did you mean onnx\?"):
        door(folder, backend="onxx")
    with pytest.raises(SourceError, match=r"is an export for onnx, and this opens those for openvino: bellm export"):
        door(folder, backend="openvino")
    with pytest.raises(SourceError, match=r"export\.json cannot be read"):
        door(tiny_folder, backend="onnx")
    with pytest.raises(BellmError, match="is a graph with settings of its own: leave pooling out, or export again"):
        door(folder, backend="onnx", pooling="mean")
    with pytest.raises(BellmError, match="is a graph with settings of its own: leave dtype out"):
        door(folder, backend="onnx", dtype="bfloat16")
    with pytest.raises(BellmError, match="backend='onnx' opens a folder that bellm export wrote: give its path"):
        door(torch.nn.Linear(1, 1), backend="onnx")


def test_long_texts_are_cut_and_it_is_said(folder: Path, tiny_encoder: Encoder) -> None:
    long = "Snow fell all night. " * 30
    with pytest.warns(TruncationWarning, match="1 of 1 texts were cut to 128 tokens"):
        found = GraphEncoder.from_pretrained(folder).encode([long])
    wanted = tiny_encoder.replace(prompt="instruct", hint="Mind it.", pooling="mean-text").encode_with_stats([long])
    np.testing.assert_allclose(found, wanted.vectors, atol=1e-5)


def test_the_first_vector_takes_no_torch(folder: Path) -> None:
    program = (
        "import sys; from bellm import GraphEncoder; GraphEncoder.from_pretrained(sys.argv[1]).encode('Snow'); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = run([sys.executable, "-c", program, folder])
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gemma2", {"bidirectional": "1-2", "layer": "-1,-2"}),
        ("qwen3", {"bidirectional": "last:2", "pooling": "max"}),
        ("opt", {"bidirectional": "all", "layer": 3, "prompt": "raw"}),
    ],
)
@pytest.mark.slow
def test_windows_layers_and_centering_are_in_the_graph(
    name: str, settings: Any, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    encoder = Encoder.from_pretrained(with_tokens_of(tiny_tokenizer, name), tokenizer=tiny_tokenizer, **settings)
    texts = [f"On day {number} it snowed {number % 7} times." for number in range(80)]
    encoder = center(encoder, texts, whitening=True).replace(truncate_dim=20, normalize=True)
    write_export(encoder, "onnx", tmp_path)
    found = GraphEncoder.from_pretrained(tmp_path).encode(TEXTS[:3])
    np.testing.assert_allclose(found, encoder.encode(TEXTS[:3]), atol=1e-3)


def test_what_is_no_graph_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"export\.json cannot be read: .*Export again"):
        GraphEncoder.from_pretrained(tmp_path)
    manifest = json.loads((folder / "export.json").read_text())
    (tmp_path / "export.json").write_text(json.dumps({**manifest, "format": "transformers"}))
    with pytest.raises(SourceError, match="is an export for transformers, and this opens those for onnx"):
        GraphEncoder.from_pretrained(tmp_path)
    (tmp_path / "export.json").write_text(json.dumps(manifest))
    with pytest.raises(SourceError, match="cannot be opened: "):
        GraphEncoder.from_pretrained(tmp_path)
    assert compared(folder).holds


def test_commands_take_a_graph(folder: Path, tiny_encoder: Encoder, tmp_path: Path) -> None:
    encoder = tiny_encoder.replace(prompt="instruct", hint="Mind it.", pooling="mean-text")
    (tmp_path / "t.txt").write_text("Snow fell.\nA heron waits.\n")
    graph, texts, out = str(folder), str(tmp_path / "t.txt"), str(tmp_path / "v.npy")
    results = [
        CliRunner().invoke(app, [*command, "--json"])
        for command in (
            ["embed", graph, texts, "-o", out],
            ["similarity", graph, "Snow fell.", "A heron waits."],
            ["search", graph, "Snow", "--in", texts],
            ["embed", graph, texts, "-o", str(tmp_path / "corpus")],
        )
    ]
    assert [result.exit_code for result in results] == [0] * 4, [result.output for result in results]
    vectors = encoder.encode(["Snow fell.", "A heron waits."])
    np.testing.assert_allclose(np.load(out), vectors, atol=1e-5)
    cosine = json.loads(results[1].stdout)["cosines"][0]
    assert cosine == pytest.approx(float(encoder.similarity(*vectors)[0, 0]), abs=1e-5)
    scores = encoder.similarity(encoder.encode_query("Snow"), encoder.encode_document(["Snow fell.", "A heron waits."]))
    assert json.loads(results[2].stdout)["hits"][0]["score"] == pytest.approx(float(scores.max()), abs=1e-5)
    np.testing.assert_allclose(load_model(graph).encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)
    refused = CliRunner().invoke(app, ["embed", graph, texts, "-o", out, "--force", "--pooling", "mean"])
    assert "is a graph with settings of its own: leave pooling out, or export again" in refused.output
    with pytest.raises(SourceError, match=r"is an export for onnx: open it with backend='onnx'"):
        Encoder.from_pretrained(folder)


@pytest.mark.slow
def test_openvino_runs_the_same_graph(tiny_encoder: Encoder, tmp_path: Path) -> None:
    encoder = tiny_encoder.replace(
        prompt="instruct", hint="Mind it.", pooling="mean-text", normalize=True, truncate_dim=20
    )
    found = exported(encoder, "openvino", tmp_path / "out")
    assert found["runtime"].startswith("openvino ")
    assert found["max_difference"] < 1e-4
    assert {path.name for path in (tmp_path / "out").glob("model*")} == {"model.xml", "model.bin"}
    graph = Encoder.from_pretrained(tmp_path / "out", backend="openvino", num_threads=1)
    assert graph.describe()["backend"] == "openvino"
    np.testing.assert_allclose(graph.encode_query(TEXTS), encoder.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_allclose(open_embedder(str(tmp_path / "out")).encode(TEXTS), encoder.encode(TEXTS), atol=1e-5)
    (tmp_path / "out" / "model.bin").write_bytes(b"")
    with pytest.raises(SourceError, match="out cannot be opened: "):
        GraphEncoder.from_pretrained(tmp_path / "out")


@pytest.mark.slow
def test_fewer_bits_have_a_price(tiny_encoder: Encoder, tmp_path: Path) -> None:
    distances = []
    for bits in (8, 4):
        folder = tmp_path / f"bits-{bits}"
        folder.mkdir()
        write_export(tiny_encoder, "onnx", folder, bits=bits)  # type: ignore[arg-type]
        distances.append(compared(folder).max_difference)
    assert 1e-4 < distances[0] < 0.1
    assert distances[0] < distances[1]


def test_bits_are_for_graphs(tiny_encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(BellmError, match=r"bits=8 is for onnx, openvino, gguf\. For others quantize the encoder first"):
        export(tiny_encoder, "static", tmp_path / "out", bits=8)
    with pytest.raises(BellmError, match="bits=2 is not one of 8, 4"):
        export(tiny_encoder, "onnx", tmp_path / "out", bits=2)  # type: ignore[arg-type]
