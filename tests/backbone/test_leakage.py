import copy
from typing import Any

import pytest
import torch
from tiny import tiny
from torch import nn
from torch._dynamo.exc import TorchDynamoException

from bellm.backbone.architecture import count_layers, get_decoder, get_layers
from bellm.backbone.attention import BidirectionalMaskHook, open_layers
from bellm.backbone.hooks import shared_copy
from bellm.backbone.leakage import (
    NUM_SAMPLE_TOKENS,
    FutureAttention,
    check_open_layers,
    measure_leakage,
    sample_token_ids,
)
from bellm.errors import LayerError
from tests.decoders import CASES, REPRESENTATIVE, TEXTS, decoder, openable


def sees_everything(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a wrong mask would do: hand a layer a mask that allows every pair."""
    return args, {**kwargs, "attention_mask": None, "is_causal": False}


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "bloom", "qwen3_moe"])
def test_untouched_model_sees_the_past_alone(name: str) -> None:
    model = decoder(name, "eager")
    for leakage in measure_leakage(model):
        assert leakage.future <= 1e-6
        assert leakage.past > 1e-2
        assert leakage.reach == 0


def test_reach_counts_the_tokens_ahead_that_a_window_lets_in() -> None:
    model = open_layers(decoder("gemma3_text"), (0, 1))
    assert [leakage.reach for leakage in measure_leakage(model)] == [3, 13, 0, 0]


def test_causal_model_needs_no_check() -> None:
    model = decoder("llama")
    check_open_layers(model)


@pytest.mark.parametrize("name", ["llama", "gpt2", "llama4_text", "qwen3_next", "mpt"])
def test_open_layers_pass(name: str) -> None:
    model = decoder(name, "eager")
    check_open_layers(open_layers(model, (1, 3)))
    check_open_layers(open_layers(model, (3,), variant="parallel"))


def test_built_in_triangle_is_not_passed_off_as_bidirectional() -> None:
    model = open_layers(tiny("gpt_neo"), (2, 3))
    with pytest.raises(LayerError, match="Layers 2-3 of GPTNeoForCausalLM were opened but still do not see"):
        check_open_layers(model)


@pytest.mark.parametrize("size", [0.0, 1e12])
def test_layers_whose_weights_are_at_fault_are_not_put_down_to_their_mask(size: float) -> None:
    model = copy.deepcopy(decoder("llama", "eager"))
    with torch.no_grad():
        for layer in get_layers(model):
            layer.module.self_attn.v_proj.weight.mul_(0 if size == 0 else 1)
            layer.module.mlp.down_proj.weight.mul_(size)
    with pytest.raises(LayerError, match=r"Layers 1-2 of LlamaForCausalLM see no other token.*training that diverged"):
        check_open_layers(open_layers(model, (1, 2)))


def test_hook_that_does_nothing_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_layers(decoder("llama", "eager"), (1, 2))
    monkeypatch.setattr(BidirectionalMaskHook, "__call__", lambda self, module, args, kwargs: (args, kwargs))
    with pytest.raises(LayerError, match="Layers 1-2 of LlamaForCausalLM were opened but still"):
        check_open_layers(model)


def test_closed_layer_that_sees_the_future_is_found_out() -> None:
    model = shared_copy(open_layers(decoder("llama"), (1,)))
    get_layers(model)[3].attention[0].register_forward_pre_hook(sees_everything, with_kwargs=True)
    with pytest.raises(LayerError, match="Layers 3 of LlamaForCausalLM see the future although"):
        check_open_layers(model)


def test_model_that_cannot_run_open_is_refused_with_its_own_words() -> None:
    model = open_layers(decoder("llama"), (1,))

    def breaks(*_: Any) -> None:
        raise RuntimeError("shapes do not fit")

    get_layers(model)[2].module.register_forward_pre_hook(breaks)
    with pytest.raises(LayerError, match=r"cannot run with layers 1 open this way: shapes do not fit"):
        check_open_layers(model)


def test_measuring_leaves_no_hook_behind() -> None:
    model = decoder("llama")
    measure_leakage(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_probe_ids_are_many_different_tokens_of_the_vocabulary() -> None:
    ids = sample_token_ids(decoder("llama"))
    assert len(ids) == NUM_SAMPLE_TOKENS
    assert len(set(ids)) == NUM_SAMPLE_TOKENS
    assert all(7 <= number < 99 for number in ids)


def test_bfloat16_rounding_is_not_taken_for_a_leak() -> None:
    model = tiny("qwen3_moe").to(torch.bfloat16)
    check_open_layers(open_layers(model, (2, 3)))


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


def test_a_kernel_that_cannot_be_compiled_is_said_to_be_so_in_one_line() -> None:
    model = open_layers(decoder("llama"), (1,))

    def fail(*_: object) -> None:
        raise TorchDynamoException(
            "backend='inductor' raised:\nCppCompileError: C++ compile error\n\nCommand:\ng++ ..."
        )

    get_layers(model)[1].attention[0].register_forward_pre_hook(fail)
    with pytest.raises(LayerError, match=r"attention cannot be compiled here .*Give attention='sdpa'\.") as caught:
        check_open_layers(model)
    assert "\n" not in str(caught.value)
