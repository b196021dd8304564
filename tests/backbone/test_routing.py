"""Routers of transformers' mixtures of experts, and the weights that they give each token."""

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import MixtralForCausalLM, MixtralModel, PreTrainedModel

from bellm.backbone.architecture import get_decoder
from bellm.backbone.routing import (
    RoutingRecorder,
    count_experts,
    dense_layers,
    find_routers,
    get_routers,
    routing_weights,
)
from bellm.backbone.states import states_after
from bellm.engine.padded import pad_rows
from bellm.errors import BellmError

from ..decoders import CPU, TEXTS, attention_of, decoder

EXPERTS = ["olmoe", "mixtral", "qwen2_moe", "qwen3_moe", "granitemoe", "deepseek_v3", "gpt_oss"]
DENSE = {"qwen2_moe": "0,2", "qwen3_moe": "0", "deepseek_v3": "0"}


def record(model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor) -> list[Tensor]:
    recorder = RoutingRecorder(model)
    with torch.inference_mode(), recorder.recording(ids_BL) as weights:
        states_after(recorder.model, ids_BL, mask_BL, [-1])
    return weights


@pytest.mark.parametrize("name", [*EXPERTS, "llama4_text", "jetmoe", "longcat_flash"])
def test_weights_are_the_softmax_of_what_transformers_calls_router_logits(name: str) -> None:
    model = decoder(name, attention_of(name))
    ids_BL, mask_BL = pad_rows(TEXTS[:1], 0, CPU)
    with torch.inference_mode():
        logits = get_decoder(model)(ids_BL, use_cache=False, output_router_logits=True).router_logits
    weights = record(model, ids_BL, mask_BL)
    wanted = [logits_NE.float().softmax(-1) for logits_NE in logits]
    if name == "jetmoe":  # transformers records the routers of its attention twice.
        wanted = [one for layer in range(4) for one in wanted[3 * layer + 1 : 3 * layer + 3]]
    assert len(weights) == len(wanted) == len(find_routers(model))
    for found_BLE, wanted_NE in zip(weights, wanted, strict=True):
        torch.testing.assert_close(found_BLE[0], wanted_NE, rtol=0, atol=1e-6)
        torch.testing.assert_close(found_BLE.sum(-1), torch.ones(1, len(wanted_NE)))


@pytest.mark.parametrize("name", EXPERTS)
def test_weights_are_the_softmax_of_the_gate_times_what_it_got(name: str) -> None:
    """In words of our own: what transformers calls router logits may one day be probabilities."""
    model = decoder(name, attention_of(name))
    batch = pad_rows(TEXTS[:1], 0, CPU)
    gates = [router.module for router in find_routers(model)]
    got: list[Tensor] = []
    hooks = [gate.register_forward_pre_hook(lambda _, args: got.append(args[0])) for gate in gates]
    try:
        with torch.no_grad():
            states_after(model, *batch, [-1])
    finally:
        for hook in hooks:
            hook.remove()
    for found_BLE, gate, inputs in zip(record(model, *batch), gates, got, strict=True):
        bias = dict(gate.named_parameters()).get("bias", torch.zeros(4))
        logits_NE = inputs.reshape(-1, 32) @ gate.get_parameter("weight").T + bias
        wanted_NE = logits_NE.exp() / logits_NE.exp().sum(-1, keepdim=True)
        torch.testing.assert_close(found_BLE[0], wanted_NE.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", EXPERTS)
def test_padding_on_either_side_and_batch_mates_change_no_weight(name: str) -> None:
    model = decoder(name, attention_of(name))
    alone = [torch.cat(record(model, *pad_rows([text], 0, CPU)), -1)[0] for text in TEXTS]
    for left in (False, True):
        ids_BL, mask_BL = pad_rows(TEXTS, 0, CPU, left=left)
        weights_BLF = torch.cat(record(model, ids_BL, mask_BL), -1)
        for row, wanted_LF in enumerate(alone):
            torch.testing.assert_close(weights_BLF[row][mask_BL[row].bool()], wanted_LF, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_counted_and_dense_layers_named(name: str) -> None:
    model = decoder(name, attention_of(name))
    num_routers = {"qwen2_moe": 2, "qwen3_moe": 3, "deepseek_v3": 3}.get(name, 4)
    assert count_experts(model) == 4 * num_routers
    assert dense_layers(model) == DENSE.get(name, "none")


class UndeclaredMixtralModel(MixtralModel):
    """A decoder as others write them: it does not say which of its modules are routers."""

    _can_record_outputs: ClassVar[Any] = {}


def test_undeclared_routers_are_found_by_name_and_shape() -> None:
    declared = decoder("mixtral")
    model = MixtralForCausalLM(declared.config).eval()
    model.model = UndeclaredMixtralModel(declared.config).eval()
    model.load_state_dict(declared.state_dict())
    model.model.layers[0].mlp.decoy = nn.Linear(32, 4)  # As many rows as experts, and no gate.
    assert len(get_routers(model)) == 4
    assert {router.output for router in get_routers(model)} == {None}
    batch = pad_rows(TEXTS, 0, CPU)
    for found, wanted in zip(record(model, *batch), record(declared, *batch), strict=True):
        torch.testing.assert_close(found[batch[1].bool()], wanted[batch[1].bool()], rtol=0, atol=1e-6)


def test_a_gate_of_another_kind_is_multiplied_with_its_bias() -> None:
    with torch.random.fork_rng():
        gate, inputs_BLD = nn.Linear(8, 4), torch.randn(2, 3, 8)
    weights_NE = routing_weights(gate, (inputs_BLD,), None, None)
    torch.testing.assert_close(weights_NE, gate(inputs_BLD).softmax(-1).reshape(6, 4))


def test_what_an_interrupted_pass_left_is_not_recorded() -> None:
    model = decoder("olmoe")
    ids_BL, mask_BL = pad_rows(TEXTS[:2], 0, CPU)
    recorder = RoutingRecorder(model)
    with torch.inference_mode():
        with pytest.raises(KeyboardInterrupt), recorder.recording(ids_BL):
            states_after(recorder.model, ids_BL, mask_BL, [-1])
            raise KeyboardInterrupt
        with recorder.recording(ids_BL[:1]) as weights:
            states_after(recorder.model, ids_BL[:1], mask_BL[:1], [-1])
    assert [len(weights_BLE) for weights_BLE in weights] == [1] * 4


def test_a_dense_model_has_no_routers() -> None:
    with pytest.raises(BellmError, match=r"mixture of experts, and LlamaForCausalLM has none\. Take readout='hidden'"):
        get_routers(decoder("llama"))
