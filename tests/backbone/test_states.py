import pytest
import torch

from bellm.backbone.architecture import get_decoder
from bellm.backbone.states import hidden_size, input_device, token_states
from bellm.engine.padded import pad_rows
from tests.decoders import CPU, TEXTS, apart, decoder


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "mpt", "opt", "falcon"])
@pytest.mark.parametrize("layer", [0, 1, 2, 3, 4, -1, -2, -5])
def test_every_state_is_that_of_transformers(name: str, layer: int) -> None:
    model = decoder(name, "eager")
    ids_BL, mask_BL = pad_rows([TEXTS[0], TEXTS[2]], 0, CPU)
    with torch.inference_mode():
        states = get_decoder(model)(
            input_ids=ids_BL, attention_mask=mask_BL, use_cache=False, output_hidden_states=True
        ).hidden_states
        found = token_states(model, ids_BL, mask_BL, layer)
    real = mask_BL.bool()
    assert len(states) == 5
    assert apart([found[real]], [states[layer][real]]) <= 1e-6


def test_padding_on_the_left_does_not_shift_learned_positions() -> None:
    model = decoder("gpt2")
    right, left = (pad_rows(TEXTS, 0, CPU, left=left) for left in (False, True))
    with torch.inference_mode():
        wanted, found = (token_states(model, *batch)[batch[1].bool()] for batch in (right, left))
    assert apart([found], [wanted]) <= 1e-6


def test_no_cache_is_kept_and_no_head_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder("llama")
    monkeypatch.setattr(model.lm_head, "forward", lambda *_: pytest.fail("the head was run"))
    seen = []
    handle = get_decoder(model).register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.inference_mode():
        token_states(model, *pad_rows(TEXTS, 0, CPU))
    handle.remove()
    assert seen[0].past_key_values is None


def test_width_and_device() -> None:
    assert hidden_size(decoder("gpt2")) == 32
    assert input_device(decoder("gpt2")) == CPU
