"""`readout` and `layer` as settings of an encoder: vectors, widths, folders, sources and refusals."""

from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from bellm import BellmError, Encoder
from bellm.data import STSPairs
from bellm.errors import NoOpWarning
from bellm.evaluate import load_model
from bellm.layer_search.layer_stats import measure_degradation
from bellm.train.chunked_forward import Chunker
from bellm.train.examples import Example

from .decoders import with_tokens_of

TEXTS = ["A heron waits.", "The invoice was paid twice.", "Why does bread rise?"]


@pytest.fixture(scope="module")
def experts(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    model = with_tokens_of(tiny_tokenizer, "olmoe")
    return Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, bidirectional="last:2")


def test_routing_has_a_number_for_every_expert_of_every_layer(experts: Encoder) -> None:
    routing = experts.replace(readout="routing")
    vectors = routing.encode(TEXTS)
    assert vectors.shape == (3, 16) == (3, routing.embedding_dim)
    np.testing.assert_allclose(vectors.reshape(3, 4, 4).sum(-1), 1, atol=1e-6)
    assert np.abs(vectors - experts.replace(readout="routing", pooling="mean").encode(TEXTS)).max() > 1e-3
    assert routing.replace(truncate_dim=4).encode(TEXTS).shape == (3, 4)
    assert routing.replace(truncate_dim=16).encode(TEXTS).shape == (3, 16)
    np.testing.assert_allclose(np.linalg.norm(routing.replace(normalize=True).encode(TEXTS), axis=1), 1, rtol=1e-6)
    with routing.causal():
        assert np.array_equal(routing.encode(TEXTS), routing.replace(bidirectional="none").encode(TEXTS))
    with pytest.raises(BellmError, match="truncate_dim=17 is more than the 16 numbers"):
        routing.replace(truncate_dim=17)


def test_several_layers_stand_side_by_side_or_are_averaged(experts: Encoder) -> None:
    experts = experts.replace(pooling="mean")
    parts = [experts.replace(layer=layer, normalize=True).encode(TEXTS) for layer in (-1, -2)]
    beside, mean = experts.replace(layer="-1,-2"), experts.replace(layer="mean:-1,-2")
    assert (beside.embedding_dim, mean.embedding_dim) == (64, 32)
    np.testing.assert_allclose(beside.encode(TEXTS), np.concatenate(parts, 1), atol=1e-6)
    np.testing.assert_allclose(mean.encode(TEXTS), sum(parts) / 2, atol=1e-6)
    with pytest.raises(BellmError, match="layer=-6 does not exist"):
        experts.replace(layer="-1,-6")


@pytest.mark.parametrize("settings", [{"readout": "routing"}, {"layer": "-1,-2", "pooling": "mean"}], ids=str)
def test_readouts_are_saved_and_are_settings_of_a_source(
    experts: Encoder, settings: dict[str, str], tmp_path: Path
) -> None:
    wanted = experts.replace(**settings).encode(TEXTS)
    experts.replace(**settings).save_pretrained(tmp_path / "saved")
    np.testing.assert_allclose(Encoder.from_pretrained(tmp_path / "saved").encode(TEXTS), wanted, atol=1e-6)
    experts.save_pretrained(tmp_path / "plain")
    source = f"{tmp_path / 'plain'}?{'&'.join(f'{name}={value}' for name, value in settings.items())}"
    np.testing.assert_allclose(load_model(source).encode(TEXTS), wanted, atol=1e-6)


def test_dense_layers_are_named(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    model = with_tokens_of(tiny_tokenizer, "deepseek_v3")
    with pytest.warns(NoOpWarning, match=r"Layers 0 have no experts: .* \(12 experts\)"):
        encoder = Encoder.from_pretrained(model, tokenizer=tiny_tokenizer, readout="routing")
    assert encoder.embedding_dim == 12


@pytest.mark.parametrize("settings", [{"readout": "routing"}, {"layer": "-1,-2", "pooling": "mean"}], ids=str)
def test_what_reads_the_states_of_each_layer_refuses_other_readouts(
    experts: Encoder, settings: dict[str, str], tmp_path: Path
) -> None:
    encoder = experts.replace(**settings)
    pairs = STSPairs("pairs", (*TEXTS,), (*TEXTS[::-1],), np.arange(3.0), ("pairs",) * 3)
    with pytest.raises(BellmError, match="The curve of dropped layers scores the states of each layer, and readout="):
        measure_degradation(encoder, pairs, tmp_path)
    with pytest.raises(BellmError, match="This objective trains the states of each layer, and readout="):
        Chunker(encoder, 100).texts([Example("A heron.", ["A bird."])], all_layers=True)


def test_routing_is_trained_as_it_is_read(experts: Encoder) -> None:
    routing = experts.replace(readout="routing")
    examples = [Example(text, ["A bird."]) for text in TEXTS]
    forward = Chunker(routing, 40).texts(examples)
    vectors = forward.in_row_order([chunk() for chunk in forward.chunks])
    np.testing.assert_allclose(vectors.detach().numpy(), routing.encode([*TEXTS, *["A bird."] * 3]), atol=1e-6)
    vectors.square().sum().backward()
    gate = next(weight for name, weight in routing.model.named_parameters() if name.endswith("gate.weight"))
    assert gate.grad is not None
    assert gate.grad.abs().max() > 0
    routing.model.zero_grad()


def test_a_dense_model_has_no_routing(tiny_encoder: Encoder) -> None:
    with pytest.raises(BellmError) as caught:
        tiny_encoder.replace(readout="routing")
    assert "LlamaForCausalLM has none. Take readout='hidden'" in str(caught.value)
    assert "\n" not in str(caught.value)
