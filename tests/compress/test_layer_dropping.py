"""Encoders with fewer layers."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bellm import BellmError, Encoder
from bellm.backbone.states import all_layer_states
from bellm.compress import drop_layers, layer_changes
from bellm.errors import BellmWarning
from tests.conftest import CORPUS

TEXTS = list(CORPUS)


def test_layers_from_the_top_are_what_the_degradation_curve_scores(tiny_encoder: Encoder) -> None:
    causal = tiny_encoder.replace(bidirectional="none")
    smaller = drop_layers(causal, 2)
    ids = torch.tensor(causal.tokenize(TEXTS[:1]).ids)
    model: Any = causal.model
    with torch.no_grad():
        states = model.model.norm(all_layer_states(model, ids, torch.ones_like(ids))[2])
    np.testing.assert_allclose(smaller.encode(TEXTS[0]), states[0, -1], rtol=1e-4, atol=1e-5)
    assert (smaller.num_layers, causal.num_layers) == (2, 4)
    [record] = smaller.compression
    assert record["summary"] == "2 of 4 layers dropped, from the top (2-3)"


def test_settings_name_the_layers_that_they_named_before(tiny_encoder: Encoder) -> None:
    """Layer 1, made to change next to nothing, goes from below the open layers and the pooled states."""
    model: Any = copy.deepcopy(tiny_encoder.model)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        model.model.layers[1].get_submodule(name).weight.data.mul_(1e-4)
    encoder = Encoder.from_pretrained(
        model, tokenizer=tiny_encoder.tokenizer, bidirectional="0,2-3", layer="-1,1,3", pooling="mean"
    )
    smaller = drop_layers(encoder, 1, by="change", texts=TEXTS)
    assert smaller.compression[0]["dropped"] == [1]
    assert smaller.config.bidirectional == (0, 1, 2)
    assert smaller.config.layer == "-1,1,2"
    np.testing.assert_allclose(smaller.encode(TEXTS), encoder.encode(TEXTS), atol=0.01)
    with pytest.raises(BellmError, match="pools states that are one without the layers between them"):
        drop_layers(encoder.replace(layer="1,2"), 1, by="change", texts=TEXTS)
    prepended = encoder.replace(bidirectional="none", token_prepending=3, layer=-1)
    assert drop_layers(prepended, 1, by="change", texts=TEXTS).config.token_prepending == 2


def test_an_encoder_that_loses_all_its_open_layers_says_so(tiny_encoder: Encoder) -> None:
    with pytest.warns(BellmWarning, match=r"All open layers \(2-3\) are among those dropped: what is left is causal\."):
        assert drop_layers(tiny_encoder, 2).config.bidirectional == ()
    assert drop_layers(tiny_encoder.replace(bidirectional="1-3"), 1).config.bidirectional == (1, 2)


@pytest.mark.filterwarnings("ignore:All open layers:bellm.BellmWarning")
def test_the_least_changing_layers_go(tiny_encoder: Encoder) -> None:
    changes = layer_changes(tiny_encoder, TEXTS)
    model: Any = tiny_encoder.model
    sums, counts = np.zeros(4), 0
    outputs: dict[int, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, args, output, index=index: outputs.update({index: output}))
        for index, layer in enumerate(model.model.layers)
    ]
    for ids in tiny_encoder.tokenize(TEXTS).ids:
        with torch.no_grad():
            model(torch.tensor([ids]))
            states = [model.get_input_embeddings()(torch.tensor([ids])), *(outputs[index] for index in range(4))]
        for index in range(4):
            sums[index] += (1 - torch.cosine_similarity(states[index][0], states[index + 1][0])).sum().item()
        counts += len(ids)
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(changes, sums / counts, rtol=1e-4)
    smaller = drop_layers(tiny_encoder, 2, by="change", texts=TEXTS)
    assert smaller.compression[0]["dropped"] == sorted(np.argsort(changes)[:2].tolist())


@pytest.mark.parametrize(
    "settings",
    [
        {"variant": "parallel", "bidirectional": "0-2", "pooling": "mean"},
        {"bidirectional": "none", "token_prepending": 3},
    ],
    ids=str,
)
def test_smaller_encoders_are_saved_and_loaded(tiny_encoder: Encoder, settings: dict[str, Any], tmp_path: Path) -> None:
    smaller = drop_layers(tiny_encoder.replace(**settings), 1, by="change", texts=TEXTS)
    smaller.save_pretrained(tmp_path / "smaller")
    loaded = Encoder.from_pretrained(tmp_path / "smaller")
    np.testing.assert_allclose(loaded.encode(TEXTS), smaller.encode(TEXTS), rtol=1e-4, atol=1e-5)
    assert loaded.compression == smaller.compression
    assert loaded.num_layers == 3
    assert tiny_encoder.num_layers == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"number": 4}, "4 layers cannot go: the model has 4, of which 1 to 3 can"),
        ({"number": 0}, "0 layers cannot go"),
        ({"number": 1, "by": "change"}, "give calibration texts"),
        ({"number": 1, "by": "bottom"}, "'bottom' is not one of top, change"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line(tiny_encoder: Encoder, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(BellmError, match=said):
        drop_layers(tiny_encoder, **arguments)
