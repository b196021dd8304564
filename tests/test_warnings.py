"""Warnings point to the line of the caller, whichever door it came in by and however deep the cause lies."""

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import bellm
from bellm import Encoder
from bellm.corpus import Index, build_index, embed_corpus
from bellm.evaluate import evaluate
from bellm.train import LoRA, Recipe, load_dataset, train

LONG = "Two trains leave the station at noon, one of them an hour late. " * 9


def place_of(said: str, call: Callable[[], object]) -> tuple[str, str]:
    """File and line of code that the one warning with these words points to."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    [warning] = [each for each in caught if said in str(each.message)]
    assert issubclass(warning.category, bellm.BellmWarning)
    return warning.filename, Path(warning.filename).read_text("utf-8").splitlines()[warning.lineno - 1].strip()


def here(line: str) -> tuple[str, str]:
    return __file__, line


@pytest.mark.parametrize("method", ["encode", "encode_query", "encode_document"])
def test_of_texts_that_are_cut(tiny_encoder: Encoder, method: str) -> None:
    def call() -> None:
        getattr(tiny_encoder, method)([LONG])

    assert place_of("texts were cut", call) == here("getattr(tiny_encoder, method)([LONG])")


def test_of_special_tokens_which_a_thread_finds(tiny_encoder: Encoder) -> None:
    encoder = tiny_encoder.replace(prompt="{text}</s>")

    def call() -> None:
        encoder.encode(["A </s> heron."])

    assert place_of("hold special tokens", call) == here('encoder.encode(["A </s> heron."])')


def test_of_layers_that_change_nothing(
    tiny_encoder: Encoder, tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tiny_folder: Path
) -> None:
    for call in (
        lambda: tiny_encoder.replace(bidirectional="last:1"),
        lambda: Encoder.from_pretrained(tiny_folder, bidirectional="last:1"),
        lambda: Encoder.from_pretrained(tiny_model, tokenizer=tiny_tokenizer, bidirectional="last:1"),
    ):
        file, line = place_of("Opening only layer 3", call)
        assert (file, line) == here(inspect.getsource(call).strip())


def test_of_weights_with_a_prefix(tiny_folder: Path, tmp_path: Path) -> None:
    for path in tiny_folder.iterdir():
        if path.name not in ("bellm.json", "modules.json", "fingerprint.safetensors", "model.safetensors"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tiny_folder / "model.safetensors")
    save_file({f"_orig_mod.{name}": tensor for name, tensor in weights.items()}, tmp_path / "model.safetensors")

    def call() -> None:
        Encoder.from_pretrained(tmp_path)

    assert place_of("a wrapper's prefix", call) == here("Encoder.from_pretrained(tmp_path)")


def test_of_an_evaluation(tiny_encoder: Encoder, tmp_path: Path) -> None:
    class Constant:
        def encode(self, texts: list[str]) -> Any:
            return torch.ones(len(texts), 4).numpy()

    (tmp_path / "p.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(f"a {n}\tb\t{n}\n" for n in range(9)))

    def call() -> None:
        evaluate([Constant()], [tmp_path / "p.tsv"])

    assert place_of("the same vector", call) == here('evaluate([Constant()], [tmp_path / "p.tsv"])')


def test_of_a_data_set_and_a_training_run(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("anchor,positive,page\nsnow,ice,1\n")

    def read() -> None:
        load_dataset(tmp_path / "p.csv")

    assert place_of("not read: column 'page'", read) == here('load_dataset(tmp_path / "p.csv")')
    rated = "".join(f"snow {number},ice,{number // 2}\n" for number in range(4))
    (tmp_path / "r.csv").write_text(f"anchor,positive,score\n{rated}")
    data = load_dataset(tmp_path / "r.csv")
    recipe = Recipe(model=str(tiny_folder), tuning=LoRA(rank=2), batch_size=1, max_steps=2)

    def learn() -> None:
        with pytest.raises(bellm.BellmError):
            train(recipe, data, tmp_path / "run")

    assert place_of("teaches nothing", learn) == here('train(recipe, data, tmp_path / "run")')


def test_of_a_corpus_and_its_index(tiny_encoder: Encoder, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"snow {name}\n")
    out = tmp_path / "out"
    embed_corpus(tiny_encoder, [tmp_path / "a.txt"], out)
    build_index(out)

    def more() -> None:
        embed_corpus(tiny_encoder, [tmp_path / "b.txt"], out)

    assert place_of("embedded earlier", more) == here('embed_corpus(tiny_encoder, [tmp_path / "b.txt"], out)')

    def search() -> None:
        Index.open(out)

    assert place_of("has changed since it was indexed", search) == here("Index.open(out)")
