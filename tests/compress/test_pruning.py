"""Pruned encoders: budgets, calibration in the encoder's own prompt and layers, memory, stops."""

import gc
import json
import signal
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import BellmError, Encoder
from bellm.backbone.weight_matrices import find_matrices
from bellm.compress import allocate, layer_alphas, measure_spectra, prune
from bellm.compress.pruners import PruneMethod
from bellm.compress.pruning import Allocation
from tests.conftest import CORPUS
from tests.decoders import with_tokens_of
from tests.processes import runner


def zeros(encoder: Encoder) -> list[int]:
    """Zeros in the matrices of each layer."""
    return [sum(int((each.weight_OI == 0).sum()) for each in layer) for layer in find_matrices(encoder.model)]


def num_weights(encoder: Encoder) -> list[int]:
    return [sum(each.weight_OI.numel() for each in layer) for layer in find_matrices(encoder.model)]


@pytest.mark.parametrize("allocation", get_args(Allocation))
@pytest.mark.parametrize("method", get_args(PruneMethod))
def test_budgets_are_spent_to_the_weight(tiny_encoder: Encoder, method: PruneMethod, allocation: Allocation) -> None:
    before = tiny_encoder.encode(list(CORPUS))
    pruned = prune(tiny_encoder, 0.37, method=method, allocation=allocation, texts=CORPUS)
    sizes = num_weights(tiny_encoder)
    assert sum(zeros(pruned)) == round(0.37 * sum(sizes))
    [record] = pruned.compression
    assert record["removed"] == sum(zeros(pruned))
    assert [
        round(layer["sparsity"] * size) for layer, size in zip(record["layers"], sizes, strict=True)
    ] == pytest.approx(zeros(pruned), abs=2)
    assert (len(set(zeros(pruned))) == 1) == (allocation == "uniform")
    assert zeros(tiny_encoder) == [0, 0, 0, 0]
    np.testing.assert_array_equal(tiny_encoder.encode(list(CORPUS)), before)
    assert pruned.config == tiny_encoder.config
    assert not np.allclose(pruned.encode(list(CORPUS)), before, atol=1e-3)


def test_layers_lose_what_their_spectra_say(tiny_encoder: Encoder) -> None:
    pruned = prune(tiny_encoder, 0.5, method="magnitude", allocation="alpha", eps=0.4)
    alphas = layer_alphas(measure_spectra(tiny_encoder.model))
    sizes = num_weights(tiny_encoder)
    np.testing.assert_array_equal(zeros(pruned), np.rint(allocate(alphas, sizes, 0.5, 0.4) * sizes))


def test_owl_takes_outliers_of_the_encoder_as_it_was(tiny_encoder: Encoder) -> None:
    """Scores of all layers are those before anything is pruned, by the inputs of a plain forward pass."""
    pruned = prune(tiny_encoder, 0.5, method="magnitude", allocation="owl", texts=CORPUS)
    squares = inputs_of(tiny_encoder)
    outliers = []
    for index, layer in enumerate(find_matrices(tiny_encoder.model)):
        scores = np.concatenate(
            [(each.weight_OI.detach().abs() * squares[index, each.name].sqrt()).flatten().numpy() for each in layer]
        )
        outliers.append((scores > 5 * scores.mean()).mean())
    assert [layer["score"] for layer in pruned.compression[0]["layers"]] == pytest.approx(outliers)


def inputs_of(encoder: Encoder) -> dict[tuple[int, str], Tensor]:
    """Squares of the inputs of every matrix, summed over the tokens of all texts, one text after the other."""
    squares: dict[tuple[int, str], Tensor] = {}
    hooks = []
    for index, layer in enumerate(find_matrices(encoder.model)):
        for matrix in layer:

            def add(_: nn.Module, args: Any, key: tuple[int, str] = (index, matrix.name)) -> None:
                rows = args[0].detach().flatten(0, -2)
                squares[key] = squares.get(key, torch.zeros(())) + rows.square().sum(0)

            hooks.append(matrix.module.register_forward_pre_hook(add))
    with torch.no_grad():
        for ids in encoder.tokenize(CORPUS).ids:
            encoder.model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return squares


def test_the_first_layer_is_pruned_by_what_the_texts_are_in_their_prompt(tiny_encoder: Encoder) -> None:
    """Wanda's masks by hand, with the encoder's prompt and its open layers."""
    opened = tiny_encoder.replace(bidirectional="all", prompt="knowledge")
    pruned = prune(opened, 0.5, texts=CORPUS)
    squares = inputs_of(opened)
    for before, after in zip(*(find_matrices(each.model)[0] for each in (opened, pruned)), strict=True):
        scores = before.weight_OI.detach().abs() * squares[0, before.name].sqrt()
        ranks = scores.argsort(dim=1).argsort(dim=1)
        torch.testing.assert_close(after.weight_OI == 0, ranks < scores.shape[1] // 2)
    causal = prune(opened.replace(bidirectional="none"), 0.5, texts=CORPUS)
    masks = [torch.cat([m.weight_OI.flatten() == 0 for m in find_matrices(each.model)[3]]) for each in (pruned, causal)]
    assert not torch.equal(*masks)


def test_each_layer_sees_what_the_pruned_ones_below_it_give(tiny_encoder: Encoder) -> None:
    pruned = prune(tiny_encoder, 0.5, texts=CORPUS)
    squares = inputs_of(pruned)
    for index in range(4):  # The first matrices of a layer get what the layers below give.
        before, after = (find_matrices(each.model)[index][0] for each in (tiny_encoder, pruned))
        scores = before.weight_OI.detach().abs() * squares[index, before.name].sqrt()
        ranks = scores.argsort(dim=1).argsort(dim=1)
        torch.testing.assert_close(after.weight_OI == 0, ranks < scores.shape[1] // 2)


def test_patterns_of_all_matrices(tiny_encoder: Encoder) -> None:
    pruned = prune(tiny_encoder, method="sparsegpt", texts=CORPUS, pattern="2:4")
    for layer in find_matrices(pruned.model):
        for matrix in layer:
            assert ((matrix.weight_OI == 0).view(-1, 4).sum(dim=1) == 2).all()
    assert pruned.compression[0]["sparsity"] == 0.5


@pytest.mark.parametrize(
    "settings", [{"variant": "parallel"}, {"bidirectional": "none", "token_prepending": 2}], ids=str
)
def test_other_forms_of_encoders(tiny_encoder: Encoder, settings: dict[str, Any]) -> None:
    pruned = prune(tiny_encoder.replace(**settings), 0.5, method="sparsegpt", texts=CORPUS)
    assert sum(zeros(pruned)) == sum(num_weights(pruned)) / 2
    assert np.isfinite(pruned.encode(list(CORPUS))).all()


def test_gpt2_and_half_precision(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    encoder = small("gpt2", tiny_tokenizer).replace(bidirectional="last:2").bfloat16()
    pruned = prune(encoder, 0.5, method="sparsegpt", texts=["a b", "c"])
    assert pruned.dtype_name == "bfloat16"
    assert sum(zeros(pruned)) == sum(num_weights(pruned)) / 2


def small(name: str, tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """A causal encoder of some architecture."""
    return Encoder.from_pretrained(with_tokens_of(tokenizer, name), tokenizer=tokenizer, prompt="raw")


def test_no_more_than_one_layers_states_are_in_memory(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    """All live tensors, seen from within each call of a matrix: the states of all texts once, and one batch's."""
    texts = [f"{number} herons, {number * 7} fish" for number in range(2500)]
    encoder = Encoder.from_pretrained(tiny_model, tokenizer=tiny_tokenizer, prompt="raw")
    num_tokens = sum(map(len, encoder.tokenize(texts).ids))
    own = {id(tensor) for tensor in (*encoder.model.parameters(), *encoder.model.buffers())}
    known = {id(each) for each in gc.get_objects() if type(each) is Tensor} | own
    most = 0

    def look(*_: Any) -> None:
        nonlocal most
        live = [each for each in gc.get_objects() if type(each) is Tensor and id(each) not in known]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in live}
        most = max(most, sum(storages.values()))

    hook = encoder.model.model.layers[3].mlp.down_proj.register_forward_pre_hook(look)
    prune(encoder, 0.5, method="sparsegpt", texts=texts)
    hook.remove()
    states, batch = num_tokens * 32 * 4, 4096 * (2 * 64 + 6 * 32) * 4
    grams = 4 * (6 * 32**2 + 64**2)
    ids, weights = 2 * num_tokens * 8, sum(4 * each.numel() for each in encoder.model.parameters())
    assert num_tokens > 5 * 4096
    assert states < most < states + batch + grams + ids + weights
    assert batch + grams + ids + weights < 3 * states  # States of all four layers would not pass.


def test_what_a_kill_leaves_the_same_call_finishes(tiny_folder: Path, tmp_path: Path) -> None:
    with runner("-m", "tests.compress.killed", tiny_folder) as job:
        assert job.ask(out=str(tmp_path / "whole"), blow=None) == 0
        wanted = (tmp_path / "whole" / "model" / "model.safetensors").read_bytes()
        out = tmp_path / "killed"
        steps = (1, 3, 6, 9, 14, 15, 19, 1, 2)
        for step in steps:
            assert job.ask(out=str(out), blow={"step": step}) in (0, -signal.SIGKILL)
            if (out / "model").exists():
                break
        if not (out / "model").exists():
            assert len(list((out / "work").glob("layer-*.safetensors"))) >= 3
            assert job.ask(out=str(out), blow=None) == 0
        assert (out / "model" / "model.safetensors").read_bytes() == wanted
    record = json.loads((tmp_path / "whole" / "model" / "bellm.json").read_text())["compression"]
    assert record == json.loads((out / "model" / "bellm.json").read_text())["compression"]


def test_a_work_folder_is_of_one_pruning(tiny_encoder: Encoder, tmp_path: Path) -> None:
    prune(tiny_encoder, 0.5, method="magnitude", work=tmp_path / "work")
    again = prune(tiny_encoder, 0.5, method="magnitude", work=tmp_path / "work")
    assert sum(zeros(again)) == sum(num_weights(again)) / 2
    with pytest.raises(BellmError, match=r"holds a pruning with other sparsity \(sparsity was 0.5, is 0.6\)"):
        prune(tiny_encoder, 0.6, method="magnitude", work=tmp_path / "work")
    (tmp_path / "work" / "layer-002.safetensors").write_bytes(b"junk")
    with pytest.raises(BellmError, match="Remove it, and its layer is pruned again"):
        prune(tiny_encoder, 0.5, method="magnitude", work=tmp_path / "work")


def test_a_pruned_encoder_is_saved_with_what_was_done(tiny_encoder: Encoder, tmp_path: Path) -> None:
    pruned = prune(tiny_encoder, 0.5, texts=CORPUS)
    pruned.save_pretrained(tmp_path / "pruned")
    loaded = Encoder.from_pretrained(tmp_path / "pruned")
    assert loaded.compression == pruned.compression
    assert loaded.replace(bidirectional="none").compression == pruned.compression
    np.testing.assert_allclose(loaded.encode(list(CORPUS)), pruned.encode(list(CORPUS)), rtol=1e-4, atol=1e-5)
    card = (tmp_path / "pruned" / "README.md").read_text()
    size = sum(num_weights(pruned))
    assert f"| compression | 50.0% of {size:,} weights removed (uniform, wanda) |" in card
    twice = prune(loaded, 0.6, method="magnitude")
    assert [record["method"] for record in twice.compression] == ["wanda", "magnitude"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sparsity": 1.0, "texts": CORPUS}, "sparsity=1 is not between 0 and 1"),
        ({"sparsity": 0.0, "texts": CORPUS}, "sparsity=0 is not between 0 and 1"),
        ({}, "Nothing says how many weights go"),
        ({"sparsity": 0.5}, "method=wanda asks what texts make of the weights: give calibration texts"),
        ({"sparsity": 0.5, "method": "sparsegpt"}, "method=sparsegpt asks"),
        ({"sparsity": 0.5, "method": "magnitude", "allocation": "owl"}, "allocation=owl asks"),
        ({"sparsity": 0.5, "method": "wand", "texts": CORPUS}, "Did you mean wanda"),
        ({"sparsity": 0.5, "allocation": "even", "texts": CORPUS}, "allocation='even' is not one of"),
        ({"sparsity": 0.6, "pattern": "2:4", "texts": CORPUS}, "sparsity=0.6, and pattern=2:4 is 0.5"),
        ({"pattern": "2:4", "allocation": "alpha", "texts": CORPUS}, "the same share of every layer"),
        ({"pattern": "2:5", "method": "magnitude"}, "rows of 32 weights, which are no groups of 5"),
        ({"sparsity": 0.5, "eps": 1.5, "method": "magnitude", "allocation": "alpha"}, "eps=1.5"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(tiny_encoder: Encoder, options: dict[str, Any], said: str) -> None:
    with pytest.raises(BellmError, match=said) as raised:
        prune(tiny_encoder, **options)
    assert "\n" not in str(raised.value)


def test_models_whose_weights_cannot_go(tiny_tokenizer: PreTrainedTokenizerFast, tiny_encoder: Encoder) -> None:
    encoder = small("mixtral", tiny_tokenizer)
    with pytest.raises(BellmError, match="holds all experts in one fused tensor"):
        prune(encoder, 0.5, method="magnitude")
    other = tiny_encoder.replace(bidirectional="none")
    layer = find_matrices(other.model)[2][0].module
    vars(layer)["_parameters"]["weight"] = nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)
    with pytest.raises(BellmError, match=r"Layer 2 .*has quantized weights"):
        find_matrices(other.model)
