import copy

import pytest
import torch
from transformers import LlamaForCausalLM

from bellm import Encoder
from bellm.backbone.architecture import count_layers, get_decoder, get_layers
from bellm.backbone.attention import open_layers
from bellm.backbone.states import all_layer_states, hidden_size, input_device, token_states, with_early_exits
from bellm.engine.padded import pad_rows
from tests.decoders import CPU, REPRESENTATIVE, TEXTS, apart, decoder


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


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("name", REPRESENTATIVE)
@torch.inference_mode()
def test_the_last_exit_is_the_model_itself_and_the_others_went_through_its_end(name: str, left: bool) -> None:
    model = decoder(name, "eager")
    ids_BL, mask_BL = pad_rows(TEXTS, 0, CPU, left=left)
    states = all_layer_states(with_early_exits(model), ids_BL, mask_BL)
    assert len(states) == count_layers(model) + 1
    torch.testing.assert_close(states[-1], token_states(model, ids_BL, mask_BL), rtol=0, atol=0)
    for raw, ended in zip(all_layer_states(model, ids_BL, mask_BL)[1:-1], states[1:-1], strict=True):
        assert raw.shape == ended.shape
        assert not torch.equal(raw, ended)


@torch.inference_mode()
def test_an_exit_is_a_model_of_the_first_layers(tiny_model: LlamaForCausalLM) -> None:
    ids_BL, mask_BL = pad_rows(TEXTS, 0, CPU)
    states = all_layer_states(with_early_exits(tiny_model), ids_BL, mask_BL)
    for depth in range(1, 5):
        cut = copy.deepcopy(tiny_model)
        get_decoder(cut).layers = get_decoder(cut).layers[:depth]
        cut.config.num_hidden_layers = depth
        wanted = cut.model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
        torch.testing.assert_close(states[depth][mask_BL.bool()], wanted[mask_BL.bool()], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", ["sequential", "parallel"])
@torch.inference_mode()
def test_exits_are_causal_and_leave_the_model_alone(tiny_model: LlamaForCausalLM, variant: str) -> None:
    ids_BL, mask_BL = pad_rows(TEXTS, 0, CPU)
    model = open_layers(tiny_model, [1, 2], variant=variant)  # type: ignore[arg-type]
    before = token_states(model, ids_BL, mask_BL)
    states = all_layer_states(with_early_exits(model), ids_BL, mask_BL)
    torch.testing.assert_close(states[-1], token_states(tiny_model, ids_BL, mask_BL), rtol=0, atol=0)
    torch.testing.assert_close(token_states(model, ids_BL, mask_BL), before, rtol=0, atol=0)


@torch.inference_mode()
def test_a_call_that_fails_leaves_nothing_behind(tiny_encoder: Encoder) -> None:
    model = with_early_exits(tiny_encoder.model)
    ids_BL, mask_BL = pad_rows(TEXTS, 0, CPU)
    wanted = all_layer_states(model, ids_BL, mask_BL)

    def fail(*_: object) -> None:
        raise RuntimeError("not enough memory")

    hook = get_layers(model)[2].module.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError):
        all_layer_states(model, ids_BL, mask_BL)
    hook.remove()
    torch.testing.assert_close(all_layer_states(model, ids_BL, mask_BL), wanted, rtol=0, atol=0)
