import pytest
import torch

from bellm.backbone.architecture import count_layers, get_decoder
from bellm.backbone.attention import open_layers
from bellm.backbone.lookahead import FutureAttention
from tests.decoders import CASES, REPRESENTATIVE, TEXTS, decoder, openable

WITH_WEIGHTS = ("gemma2", "gpt2", "llama", "mixtral", "opt", "qwen3")
IDS = torch.tensor([TEXTS[0]])


@pytest.mark.parametrize(("name", "attention"), [case for case in CASES if case[0] in WITH_WEIGHTS])
@torch.inference_mode()
def test_shares_are_those_of_the_weights_that_transformers_gives_with_one_layer_open(name: str, attention: str) -> None:
    model = decoder(name, attention)
    shares = FutureAttention(model).future_attention_mass(IDS)
    assert len(shares) == count_layers(model)
    for number in openable(model):
        alone = get_decoder(open_layers(decoder(name, "eager"), [number]))
        output = alone(input_ids=IDS, use_cache=False, output_attentions=True)
        weights_HLL = output.attentions[number][0]
        ahead = [float(weights_HLL[:, at, at + 1 :].sum(-1).mean()) for at in range(IDS.shape[1] - 1)]
        assert shares[number] == pytest.approx(sum(ahead) / len(ahead), rel=1e-4)
        assert 0 < shares[number] < 1


@pytest.mark.parametrize("name", REPRESENTATIVE)
def test_layers_with_attention_and_no_others_have_a_share(name: str) -> None:
    model = decoder(name, "eager")
    shares = FutureAttention(model).future_attention_mass(IDS)
    assert [number for number, share in enumerate(shares) if share is not None] == openable(model)
    assert all(0 < share < 1 for share in shares if share is not None)
