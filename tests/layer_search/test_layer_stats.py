import numpy as np
import pytest
from scipy.stats import spearmanr

from bellm import Encoder
from bellm.errors import BellmError
from bellm.layer_search.layer_stats import measure_layers

TEXTS = ["A heron waits at the river.", "The invoice was paid twice by mistake.", ""]


def test_dependency_is_the_mean_correlation_of_the_last_state_with_the_others(tiny_encoder: Encoder) -> None:
    found = measure_layers(tiny_encoder.replace(prompt="raw"), TEXTS)  # The empty text is one token, without another.
    assert found.num_texts == 2
    assert len(found.dependency) == len(found.looks_ahead) == 4
    means = []
    with tiny_encoder.causal() as model:
        for text in TEXTS[:2]:
            states_LD = model.model(**tiny_encoder.tokenizer(text, return_tensors="pt")).last_hidden_state[0].detach()
            means.append(np.mean([spearmanr(states_LD[-1], other).statistic for other in states_LD[:-1]]))
    assert found.dependency[-1] == pytest.approx(100 * np.mean(means), abs=1e-3)


def test_shares_are_percent_of_attention(tiny_encoder: Encoder) -> None:
    shares = measure_layers(tiny_encoder, TEXTS).looks_ahead
    assert all(share is not None and 1 < share < 99 for share in shares)
    assert measure_layers(tiny_encoder.replace(bidirectional="none"), TEXTS).looks_ahead == shares


def test_texts_of_one_token_say_nothing(tiny_encoder: Encoder) -> None:
    with pytest.raises(BellmError, match="None of 1 texts has 2 tokens"):
        measure_layers(tiny_encoder.replace(prompt="raw"), [""])
