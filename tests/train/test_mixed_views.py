"""Training on texts and their AMR graphs: what is drawn, what may meet in a batch, and runs that resume."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from bellm.data import Graphs
from bellm.errors import BellmError, BellmWarning, SourceError
from bellm.run_dir import CHECKPOINT
from bellm.train.batches import Batches
from bellm.train.dataset import Dataset
from bellm.train.examples import Example
from bellm.train.loop import train
from bellm.train.recipe import LoRA, Recipe
from tests.train.rows import dataset, triplets


def graphs_of(rows: list[Example], without: int = 0) -> Graphs:
    """A graph for every text but some."""
    texts = [text for row in rows for text in row.texts][without:]
    return Graphs({" ".join(text.split()): f"(text :li {number})" for number, text in enumerate(texts)}, "test")


def write_graphs(path: Path, rows: list[Example], concept: str = "text") -> Path:
    texts = [text for row in rows for text in row.texts]
    blocks = (f"# ::snt {text}\n(t / {concept} :li {number})\n" for number, text in enumerate(texts))
    path.write_text("\n".join(blocks), encoding="utf-8")
    return path


def test_every_text_is_itself_or_its_graph_at_even_odds() -> None:
    rows = triplets(64)
    graphs = graphs_of(rows, without=1)
    batches, plain = (Batches([(Dataset("ours", rows), 1)], 16, 7, given) for given in (graphs, None))
    drawn = [batches[step] for step in range(80)]
    share = Counter[str]()
    for batch, texts in zip(drawn, (plain[step] for step in range(80)), strict=True):
        assert batch.rows == texts.rows
        for example, own in zip(batch.examples, texts.examples, strict=True):
            for slot, text, it in zip(("anchor", "positive", "negative"), example.texts, own.texts, strict=True):
                assert text in (it, graphs(it))
                share[slot] += text != it
    number = sum(len(batch.rows) for batch in drawn)
    assert all(0.45 < share[slot] / number < 0.55 for slot in ("anchor", "positive", "negative")), share
    first = rows[0].anchor
    assert all(
        example.anchor != graphs(first) or first == graphs(first) for batch in drawn for example in batch.examples
    )
    again = Batches([(Dataset("ours", rows), 1)], 16, 7, graphs)
    assert [again[step] for step in (79, 0, 33)] == [drawn[step] for step in (79, 0, 33)]
    other = Batches([(Dataset("ours", rows), 1)], 16, 8, graphs)
    assert other[0].examples != drawn[0].examples


def test_equal_graphs_never_meet_in_a_batch() -> None:
    rows = [Example(f"dog {number}", (f"cat {number}",)) for number in range(24)]
    graphs = Graphs({f"dog {number}": f"(dog :li {number // 4})" for number in range(24)}, "test")
    batches = Batches([(Dataset("pets", rows), 1)], 6, 0, graphs)
    for step in range(batches.per_epoch):
        anchors = [number // 4 for number in batches[step].rows]
        assert len(anchors) == len(set(anchors))
    assert Batches([(Dataset("pets", rows), 1)], 6, 0).per_epoch == batches.per_epoch == 4


def test_a_negative_with_the_graph_of_another_text_stays_a_text() -> None:
    rows = [Example("A dog barks.", ("The dog barked.",), ("Dogs bark.",))]
    graphs = Graphs(dict.fromkeys(rows[0].texts, "(bark-01 :ARG0 (dog))"), "test")
    batches = Batches([(Dataset("dogs", rows), 1)], 1, 0, graphs)
    drawn = [batches[step].examples[0] for step in range(40)]
    assert {example.negatives[0] for example in drawn} == {"Dogs bark."}
    assert len({(example.anchor, example.positives) for example in drawn}) == 4


@pytest.fixture(scope="module")
def recipe(tiny_folder: Path) -> Recipe:
    return Recipe(model=str(tiny_folder), tuning=LoRA(rank=2, dropout=0.1), batch_size=4, max_steps=6)


def test_a_run_resumes_to_the_same_weights_wherever_its_graphs_are(recipe: Recipe, tmp_path: Path) -> None:
    rows = triplets(16)
    own, moved = write_graphs(tmp_path / "a.amr", rows), write_graphs(tmp_path / "b.amr", rows)
    mixed = replace(recipe, graphs=str(own))
    train(mixed, dataset(16), tmp_path / "whole")
    train(mixed, dataset(16), tmp_path / "paused", until=3)
    train(replace(recipe, graphs=str(moved)), dataset(16), tmp_path / "paused")
    train(recipe, dataset(16), tmp_path / "texts")
    whole, paused, texts = (load_file(tmp_path / name / CHECKPOINT) for name in ("whole", "paused", "texts"))
    assert all(whole[name].equal(paused[name]) for name in whole)
    assert not all(whole[name].equal(texts[name]) for name in whole)
    for other in (None, str(write_graphs(tmp_path / "c.amr", rows, "sentence"))):
        with pytest.raises(SourceError, match="data"):
            train(replace(recipe, graphs=other), dataset(16), tmp_path / "paused")


def test_texts_without_a_graph_are_counted_and_all_of_them_refused(recipe: Recipe, tmp_path: Path) -> None:
    some = write_graphs(tmp_path / "some.amr", triplets(15))
    with pytest.warns(BellmWarning, match="3 of 48 texts have no AMR graph, and are read as they are"):
        train(replace(recipe, graphs=str(some), max_steps=1), dataset(16), tmp_path / "run")
    none = write_graphs(tmp_path / "none.amr", [Example("Snow", ("Ice",))])
    with pytest.raises(BellmError, match=r"None of the 48 texts of the data has a graph in .*none\.amr"):
        train(replace(recipe, graphs=str(none)), dataset(16), tmp_path / "other")
    with pytest.raises(SourceError, match=r"gone\.amr cannot be read"):
        train(replace(recipe, graphs=str(tmp_path / "gone.amr")), dataset(16), tmp_path / "other")
    assert not (tmp_path / "other").exists()
