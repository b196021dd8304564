"""Encoders whose weights take 8 or 4 bits."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from bellm import BellmError, Encoder
from bellm.backbone.architecture import get_layers
from bellm.backbone.hooks import shared_copy
from bellm.backbone.quantized_modules import Bits, QuantizedEmbedding, QuantizedLinear
from bellm.backbone.weight_matrices import find_matrices
from bellm.compress import drop_layers, prune, quantize
from bellm.train import Recipe
from bellm.train.trainable import load_trainable
from tests.cli.test_cli import bellm
from tests.compress.test_pruning import small
from tests.conftest import CORPUS
from tests.processes import run

TEXTS = list(CORPUS)


@pytest.mark.parametrize("inputs", [64, 70])
@pytest.mark.parametrize("outliers", [1.0, 100.0])
def test_codes_are_within_half_a_step_of_the_weights(inputs: int, outliers: float) -> None:
    weight_OI = torch.randn(24, inputs, generator=torch.Generator().manual_seed(0))
    weight_OI[3], weight_OI[5, 7] = 0.0, outliers
    for bits in (8, 4):
        module = QuantizedLinear(inputs, 24, bits, None).fill(weight_OI)
        error_OI = (module.expanded(torch.float32) - weight_OI).abs()
        if bits == 8:
            step_OI = weight_OI.abs().amax(1, keepdim=True).expand_as(weight_OI) / 127
        else:
            groups = nn.functional.pad(weight_OI, (0, -inputs % 32)).unflatten(1, (-1, 32))
            step_OI = ((groups.amax(-1) - groups.amin(-1)) / 15).repeat_interleave(32, 1)[:, :inputs]
        # Scales and minima have the 8 bits of bfloat16, so the outermost codes may be a little further away.
        assert bool((error_OI <= 0.5 * step_OI + 0.004 * weight_OI.abs().amax() + 1e-7).all())
        assert bool((error_OI[3] == 0).all())


def test_a_quantized_product_is_that_of_the_expanded_matrix() -> None:
    linear, states = nn.Linear(48, 16), torch.randn(5, 48)
    for bits in (8, 4):
        module = QuantizedLinear(48, 16, bits, linear.bias).fill(linear.weight)
        torch.testing.assert_close(module(states), states @ module.expanded(torch.float32).T + linear.bias)
    table = nn.Embedding(20, 8)
    rows = QuantizedEmbedding(20, 8, torch.float32).fill(table.weight)
    apart = (rows(torch.arange(20)) - table.weight).abs().amax(1)
    assert bool((apart <= 0.51 * table.weight.abs().amax(1) / 127).all())


def expanded(encoder: Encoder, smaller: Encoder) -> Encoder:
    """The encoder in floating point with the weights that the codes of another stand for."""
    plain = shared_copy(encoder.model)
    modules: list[Any] = [layer.module for layer in get_layers(smaller.model)]
    for layer, quantized in zip(find_matrices(plain), modules, strict=True):
        for matrix in layer:
            matrix.replace(quantized.get_submodule(matrix.name).expanded(torch.float32))
    table: Any = smaller.model.get_input_embeddings()
    plain.set_input_embeddings(nn.Embedding.from_pretrained(table(torch.arange(table.num_embeddings))))
    return encoder.with_model(plain)


@pytest.mark.parametrize(("bits", "nearest"), [(8, 0.995), (4, 0.85)])
def test_vectors_stay_near_and_the_folder_is_small(
    tiny_encoder: Encoder, tmp_path: Path, bits: Bits, nearest: float
) -> None:
    encoder = tiny_encoder.replace(normalize=True)
    smaller = quantize(encoder, bits)
    vectors_ND = smaller.encode(TEXTS)
    assert (vectors_ND * encoder.encode(TEXTS)).sum(1).min() > nearest
    assert smaller.batching_mode == "packed"
    np.testing.assert_allclose(vectors_ND, expanded(encoder, smaller).encode(TEXTS), atol=1e-5)
    assert [smaller.config, smaller.num_layers] == [encoder.config, 4]
    smaller.save_pretrained(tmp_path / "small")
    weights = tmp_path / "small" / "model.safetensors"
    with safe_open(weights, "pt") as file:
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert dtypes == ({"F32", "I8", "I16"} | ({"U8"} if bits == 4 else set()))
    assert smaller.compression[-1]["bytes"] < weights.stat().st_size < smaller.compression[-1]["bytes"] + 12_000
    loaded = Encoder.from_pretrained(tmp_path / "small")
    np.testing.assert_array_equal(loaded.encode(TEXTS), vectors_ND)
    assert loaded.compression == smaller.compression
    half = Encoder.from_pretrained(tmp_path / "small", dtype="bfloat16")
    assert half.dtype_name == "bfloat16"
    np.testing.assert_allclose(half.encode(TEXTS), vectors_ND, atol=0.05)


def test_weights_in_8_bits_take_a_quarter_and_in_4_bits_a_sixth() -> None:
    dense = nn.Linear(256, 512, bias=False)
    for bits, share in ((8, 0.25), (4, 5 / 32)):
        module = QuantizedLinear(256, 512, bits, None).fill(dense.weight)
        size = sum(each.numel() * each.element_size() for each in module.parameters())
        assert size / (dense.weight.numel() * 4) == pytest.approx(share, abs=0.003)


def test_matrices_that_lie_the_other_way_round_and_have_biases(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    config = GPT2Config(vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128)
    torch.manual_seed(0)
    encoder = Encoder.from_pretrained(GPT2LMHeadModel(config).eval(), tokenizer=tiny_tokenizer, normalize=True)
    assert (quantize(encoder).encode(TEXTS) * encoder.encode(TEXTS)).sum(1).min() > 0.999


def test_a_changed_code_is_noticed_and_other_libraries_warn(tiny_encoder: Encoder, tmp_path: Path) -> None:
    quantize(tiny_encoder).save_pretrained(tmp_path / "small")
    program = f"import transformers; transformers.AutoModel.from_pretrained({str(tmp_path / 'small')!r})"
    # A command line that ran before in this process has quieted transformers.
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    assert "Unknown quantization type, got bellm" in run([sys.executable, "-c", program], env=environment).stderr
    assert type(AutoModel.from_pretrained(tmp_path / "small").layers[0].mlp.up_proj) is QuantizedLinear
    with safe_open(tmp_path / "small" / "model.safetensors", "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    weights[name] = weights[name].flip(0)
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "small" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BellmError, match="does not give the vectors it was saved with"):
        Encoder.from_pretrained(tmp_path / "small")
    weights.pop(name.replace("weight", "scale"))
    save_file(weights, tmp_path / "small" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BellmError, match=r"lacks 1 weight of the model \(.*down_proj\.scale\)"):
        Encoder.from_pretrained(tmp_path / "small")


def test_what_cannot_be_quantized_or_changed_afterwards_is_one_line(
    tiny_encoder: Encoder, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    smaller = quantize(tiny_encoder)
    bits: Any = 3
    for refused, said in (
        (lambda: quantize(tiny_encoder, bits), "bits=3 is not one of 8, 4"),
        (lambda: quantize(smaller), "are quantized already. Give the model in floating point"),
        (lambda: drop_layers(smaller, 1), "are quantized already. Give the model in floating point"),
        (lambda: prune(smaller, 0.5, method="magnitude"), "are quantized already"),
        (lambda: quantize(small("mixtral", tiny_tokenizer)), "holds all experts in one fused tensor"),
        (lambda: smaller.to(torch.bfloat16), "quantized weights, or on several devices, cannot be moved"),
        (lambda: load_trainable(Recipe(model=smaller)), "is quantized"),
    ):
        with pytest.raises(BellmError, match=said) as raised:
            refused()
        assert "\n" not in str(raised.value)


def test_a_quantized_folder_is_a_source_in_a_fresh_process_and_for_a_corpus(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("".join(f"{text}\n" for text in CORPUS))
    result = bellm("quantize", tiny_folder, "--bits=4", "-o", "small", "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    found = json.loads(result.stdout)
    assert found["bytes"] == sum(path.stat().st_size for path in Path("small").iterdir())
    encoder = Encoder.from_pretrained("small")
    program = (
        "import sys; from bellm import Encoder; import numpy; "
        "numpy.save('v.npy', Encoder.from_pretrained('small').encode(open('texts.txt').read().splitlines()))"
    )
    assert run([sys.executable, "-c", program]).returncode == 0
    np.testing.assert_allclose(np.load("v.npy"), encoder.encode(TEXTS), rtol=1e-4, atol=1e-5)
    made = bellm("embed", "small", "texts.txt", "-o", "corpus/", "--json")
    assert json.loads(made.stdout)["rows"] == len(CORPUS)
    again = bellm("quantize", "small", "-o", "smaller")
    assert (again.exit_code, again.stderr.count("\n")) == (1, 1)
    assert "are quantized already" in again.stderr
    assert sorted(os.listdir()) == ["corpus", "small", "texts.txt", "v.npy"]
