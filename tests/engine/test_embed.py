"""Padding, the text's mask, and vectors against a loop of one text at a time."""

import numpy as np
import pytest
import torch

from bellm import Encoder
from bellm.backbone.states import token_states
from bellm.engine.embed import embed, pad, text_mask
from bellm.tensors.pooling import POOLERS

TEXTS = ["A heron.", "Snow fell all night on the long street.", "", "Why?", "Two trains leave the station at noon."]


def test_rows_are_padded_on_the_side_that_is_asked_for() -> None:
    ids, mask = pad([[5, 6], [7]], 0, torch.device("cpu"))
    assert ids.tolist() == [[5, 6], [7, 0]]
    assert mask.tolist() == [[1, 1], [1, 0]]
    ids, mask = pad([[5, 6], [7]], 0, torch.device("cpu"), left=True)
    assert ids.tolist() == [[5, 6], [0, 7]]
    assert mask.tolist() == [[1, 1], [0, 1]]


def test_the_texts_mask_leaves_the_prompt_out_unless_there_is_no_text() -> None:
    _, mask = pad([[1, 2, 3, 4], [1, 2, 3]], 0, torch.device("cpu"))
    assert text_mask(mask, [(1, 3), (0, 0)]).tolist() == [[0, 1, 1, 0], [1, 1, 1, 0]]


@pytest.mark.parametrize("pooling", POOLERS)
@pytest.mark.parametrize("layer", [-1, 3])
def test_batches_give_what_one_text_at_a_time_gives(tiny_encoder: Encoder, pooling: str, layer: int) -> None:
    encoder = tiny_encoder.replace(pooling=pooling, layer=layer, bidirectional="all")  # type: ignore[arg-type]
    tokens = encoder.tokenise(TEXTS)
    wanted = []
    with torch.inference_mode():
        for ids, (start, end) in zip(tokens.ids, tokens.spans, strict=True):
            states = token_states(encoder.model, torch.tensor([ids]), torch.ones(1, len(ids)).long(), layer)
            if pooling == "mean-text" and start < end:
                states = states[:, start:end]
            wanted.append(POOLERS[pooling](states, torch.ones(states.shape[:2], dtype=torch.bool))[0].numpy())  # type: ignore[index]
    found = embed(
        encoder.model,
        tokens,
        pooling=pooling,
        layer=layer,
        max_batch_tokens=30,
        pad_id=0,
        progress=False,  # type: ignore[arg-type]
    )
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.stack(wanted), rtol=0, atol=1e-5)
