import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bellm.backbone.architecture import get_decoder, get_layers, get_text_config
from bellm.backbone.attention import BidirectionalMaskHook, get_open_layers, open_layers
from bellm.backbone.hooks import causal_copy, shared_copy
from bellm.backbone.leakage import measure_leakage
from bellm.backbone.states import token_states
from bellm.engine.padded import pad_rows
from bellm.errors import LayerError
from bellm.types import Variant, Window
from tests.decoders import CASES, CPU, TEXTS, alone, apart, decoder, openable, together

FAILS_UPSTREAM = {
    ("llama4_text", "eager"): "is_causal=False leaves its chunked layers causal",
    ("llama4_text", "sdpa"): "is_causal=False leaves its chunked layers causal",
    ("mpt", "eager"): "is_causal=False crashes without padding",
    ("nemotron", "sdpa"): "is_causal=False does nothing without padding",
    ("stablelm", "sdpa"): "is_causal=False does nothing without padding",
}
"""Where transformers' own switch cannot be the reference on a batch without padding."""

RENAMED = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning")
"""peft and transformers before 5.23 know checkpointing under its old name only."""

ARCHITECTURES = pytest.mark.parametrize(("name", "backend"), CASES)


def upper_half(model: PreTrainedModel) -> list[int]:
    numbers = openable(model)
    return numbers[len(numbers) // 2 :]


def switched(model: PreTrainedModel) -> PreTrainedModel:
    """The model opened by transformers' own switch, its windows of W tokens reaching W-1 as the causal ones do."""
    official = causal_copy(model)
    config: Any = get_text_config(official)
    config.is_causal = False
    if isinstance(getattr(config, "sliding_window", None), int):
        config.sliding_window -= 1
    return official


def hooks_of(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules())


# Every way of masking


@ARCHITECTURES
def test_no_open_layer_equals_the_untouched_model_exactly(name: str, backend: str) -> None:
    model = decoder(name, backend)
    ids_1L = torch.tensor(TEXTS[:1])
    with torch.inference_mode():
        plain = get_decoder(model)(input_ids=ids_1L, use_cache=False).last_hidden_state
        closed = get_decoder(open_layers(model, ()))(input_ids=ids_1L, use_cache=False).last_hidden_state
        reclosed = get_decoder(causal_copy(open_layers(model, openable(model))))(input_ids=ids_1L, use_cache=False)
    assert torch.equal(closed, plain)
    assert torch.equal(reclosed.last_hidden_state, plain)


@pytest.mark.parametrize(("name", "backend"), [case for case in CASES if case not in FAILS_UPSTREAM])
def test_all_open_equals_the_switch_of_transformers_exactly_without_padding(name: str, backend: str) -> None:
    model = decoder(name, backend)
    everything, official = open_layers(model, openable(model)), switched(model)
    for text in TEXTS:
        assert torch.equal(alone(everything, text), alone(official, text))
    assert apart([alone(everything, TEXTS[0])], [alone(model, TEXTS[0])]) > 1e-2


@pytest.mark.parametrize(("name", "backend"), [case for case in CASES if case[0] != "llama4_text"])
def test_all_open_equals_the_switch_of_transformers_with_padding(name: str, backend: str) -> None:
    model = decoder(name, backend)
    assert apart(together(open_layers(model, openable(model)), TEXTS), together(switched(model), TEXTS)) <= 1e-6


@ARCHITECTURES
def test_chosen_layers_and_only_they_see_the_future(name: str, backend: str) -> None:
    model = decoder(name, backend)
    chosen = upper_half(model)
    measured = measure_leakage(open_layers(model, chosen))
    assert [number for number, leakage in enumerate(measured) if leakage.future > 1e-2] == chosen
    assert all(leakage.future <= 1e-6 for number, leakage in enumerate(measured) if number not in chosen)


@ARCHITECTURES
def test_padding_is_never_attended(name: str, backend: str) -> None:
    model = open_layers(decoder(name, backend), upper_half(decoder(name, backend)))
    assert apart(together(model, TEXTS, pad_id=50), together(model, TEXTS)) <= 1e-6
    assert apart(together(model, TEXTS, pad_id=50, left=True), together(model, TEXTS, left=True)) <= 1e-6


@ARCHITECTURES
def test_alone_equals_in_a_batch_padded_on_either_side(name: str, backend: str) -> None:
    model = open_layers(decoder(name, backend), upper_half(decoder(name, backend)))
    wanted = [alone(model, text) for text in TEXTS]
    assert apart(together(model, TEXTS), wanted) <= 5e-6
    if name != "llama4_text":  # Its chunks are cut by place in the row, in the untouched model too.
        assert apart(together(model, TEXTS, left=True), wanted) <= 5e-6


def test_left_padding_shifts_the_chunks_of_untouched_llama4_too() -> None:
    model = decoder("llama4_text")
    assert apart(together(model, TEXTS, left=True), together(model, TEXTS)) > 1e-3


@pytest.mark.parametrize(("name", "reach"), [("mistral", 3), ("phi3", 3), ("gemma3_text", 3), ("llama4_text", 1)])
def test_opened_window_reaches_every_token_and_a_kept_one_does_not(name: str, reach: int) -> None:
    model = decoder(name)
    kept, free = open_layers(model, (0,)), open_layers(model, (0,), window="open")
    assert measure_leakage(kept)[0].reach == reach
    assert measure_leakage(free)[0].reach == 13


def test_opened_window_equals_a_model_without_window() -> None:
    model = decoder("mistral")
    free = open_layers(model, range(4), window="open")
    windowless = switched(model)
    windowless.config.sliding_window = None
    assert apart(together(free, TEXTS), together(windowless, TEXTS)) <= 1e-6


def test_opening_leaves_windows_to_the_position_encoding_and_closing_gives_triangles_back() -> None:
    free = open_layers(decoder("gemma3_text"), (0, 2), window="open")
    closed = causal_copy(free)
    assert [layer.attention[0].sliding_window for layer in get_layers(free)] == [4, None, 4, None]
    assert [layer.attention[0].is_causal for layer in get_layers(free)] == [False, True, False, True]
    assert [layer.attention[0].sliding_window for layer in get_layers(closed)] == [4, None, 4, None]
    assert [layer.attention[0].is_causal for layer in get_layers(closed)] == [True] * 4
    assert [layer.kind for layer in get_layers(causal_copy(open_layers(decoder("mistral"), (0,), window="open")))] == [
        "sliding:4"
    ] * 4


@pytest.mark.parametrize("window", ["keep", "open"])
@pytest.mark.parametrize(
    "name", ["cohere2", "exaone4", "gemma3_text", "olmo3", "qwen3", "mistral", "phi3", "starcoder2"]
)
def test_kernels_that_read_no_mask_are_told_what_to_see(
    name: str, window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flash attention gets no square mask: its window and its direction come as arguments."""
    flash = "flash_attention_2"
    told: list[tuple[int | None, bool]] = []

    def kernel(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        told.append((kwargs.pop("sliding_window", None), kwargs.get("is_causal", module.is_causal)))
        return sdpa_attention_forward(module, *args, **kwargs)

    monkeypatch.setitem(AttentionInterface._global_mapping, flash, kernel)
    plain = causal_copy(decoder(name))
    get_text_config(plain)._attn_implementation_internal = flash  # type: ignore[attr-defined]
    model = open_layers(plain, (0, 1), window=window)
    alone(plain, TEXTS[0])
    alone(model, TEXTS[0])
    windows = [width for width, _ in told[:4]]
    assert 4 in windows
    assert [causal for _, causal in told] == [True] * 4 + [False, False, True, True]
    assert [width for width, _ in told[4:]] == (windows if window == "keep" else [None, None, *windows[2:]])


@pytest.mark.parametrize("window", ["keep", "open"])
@pytest.mark.parametrize("name", sorted({name for name, _ in CASES} | {"cohere2", "exaone4", "smollm3"}))
def test_nothing_that_a_module_reads_changes_but_its_direction(name: str, window: Window) -> None:
    model = decoder(name, "eager")
    opened = open_layers(model, openable(model), window=window)
    for before, after in zip(model.modules(), opened.modules(), strict=True):
        theirs, ours = (
            {key: value for key, value in vars(module).items() if not key.startswith("_")} for module in (before, after)
        )
        assert theirs.keys() == ours.keys()
        assert {key for key in theirs if isinstance(theirs[key], int | str | None) and theirs[key] != ours[key]} <= {
            "is_causal"
        }
        assert vars(before).get("config") == vars(after).get("config")


def test_layers_without_attention_cannot_open_alone() -> None:
    with pytest.raises(LayerError, match="None of the layers 0,2 has attention to open"):
        open_layers(decoder("lfm2"), (0, 2))


def test_layer_beyond_the_last_is_refused() -> None:
    with pytest.raises(LayerError, match="Layer 4 does not exist: the model has 4 layers"):
        open_layers(decoder("llama"), (4,))


# The model that was given


def test_opening_leaves_the_users_model_untouched() -> None:
    model = decoder("qwen3_moe")
    ids_1L = torch.tensor(TEXTS[:1])
    with torch.inference_mode():
        before = model(ids_1L).logits
        open_layers(model, range(4))(ids_1L)
        open_layers(model, (1, 2), variant="parallel")(ids_1L)
        assert torch.equal(model(ids_1L).logits, before)
    assert hooks_of(model) == 0
    assert all(layer.attention[0].is_causal for layer in get_layers(model))


@pytest.mark.parametrize("make", [shared_copy, causal_copy, lambda model: open_layers(model, (1, 2))])
def test_twin_shares_every_weight(make: Callable[[PreTrainedModel], PreTrainedModel]) -> None:
    model = decoder("gpt2")
    copied = make(model)
    assert copied is not model
    for (name, theirs), (_, ours) in zip(model.named_parameters(), copied.named_parameters(), strict=True):
        assert ours is theirs, name
        assert ours.data_ptr() == theirs.data_ptr()
    assert all(ours is theirs for ours, theirs in zip(copied.buffers(), model.buffers(), strict=True))


def test_opening_an_open_model_replaces_its_open_layers() -> None:
    model = open_layers(open_layers(decoder("llama"), (0, 1)), (2,))
    assert get_open_layers(model) == (2,)
    assert hooks_of(model) == 1


def test_twin_keeps_layers_open_and_plain_twin_closes_them() -> None:
    model = open_layers(decoder("llama"), (1, 3), variant="parallel")
    assert get_open_layers(shared_copy(model)) == (1, 3)
    assert get_open_layers(causal_copy(model)) == ()
    assert hooks_of(causal_copy(model)) == 0


def test_deepcopy_of_an_open_model_is_open_and_gives_the_same_states() -> None:
    model = open_layers(decoder("llama"), (1, 2))
    copied = copy.deepcopy(model)
    assert get_open_layers(copied) == (1, 2)
    assert next(copied.parameters()) is not next(model.parameters())
    for found, wanted in zip(together(copied, TEXTS), together(model, TEXTS), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("variant", ["sequential", "parallel"])
def test_threads_do_not_disturb_each_other(variant: Variant) -> None:
    model = decoder("gemma3_text")
    models = [open_layers(model, (0, 1, 2), variant=variant), model, open_layers(model, range(4)), causal_copy(model)]
    wanted = [[alone(each, text) for text in TEXTS] for each in models]
    found: list[list[list[Tensor]]] = [[] for _ in models]
    barrier = threading.Barrier(len(models))

    def work(number: int) -> None:
        barrier.wait()
        found[number] = [[alone(models[number], text) for text in TEXTS] for _ in range(8)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rounds, states in zip(found, wanted, strict=True):
        assert len(rounds) == 8
        assert max(apart(each, states) for each in rounds) <= 1e-6


def test_threads_can_share_one_open_model() -> None:
    model = open_layers(decoder("llama"), (1, 2))
    wanted = [alone(model, text) for text in TEXTS]
    found: dict[int, Tensor] = {}
    threads = [
        threading.Thread(target=lambda number=number: found.update({number: alone(model, TEXTS[number])}))
        for number in range(len(TEXTS))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert apart([found[number] for number in range(len(TEXTS))], wanted) <= 1e-6


# Training


def lora(model: PreTrainedModel) -> Any:
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_peft_model(copy.deepcopy(model), config).eval()


@RENAMED
@pytest.mark.parametrize("variant", ["sequential", "parallel"])
def test_layers_stay_open_through_lora_and_its_merge(variant: Variant) -> None:
    model = open_layers(decoder("llama"), (1, 2), variant=variant)
    adapted = lora(model)
    assert get_open_layers(adapted) == (1, 2)
    wrapped = together(adapted, TEXTS)
    assert apart(wrapped, together(model, TEXTS)) > 1e-2
    merged = adapted.merge_and_unload()
    assert get_open_layers(merged) == (1, 2)
    assert apart(together(merged, TEXTS), wrapped) <= 1e-5
    wanted = open_layers(causal_copy(merged), (1, 2), variant=variant)
    assert apart(together(merged, TEXTS), together(wanted, TEXTS)) == 0.0


@RENAMED
def test_a_model_with_lora_opens_like_any_other() -> None:
    adapted = lora(decoder("llama"))
    model = open_layers(adapted, (1, 2))
    assert get_open_layers(model) == (1, 2)
    assert get_open_layers(adapted) == ()
    merged = copy.deepcopy(adapted).merge_and_unload()
    assert apart(together(model, TEXTS), together(open_layers(merged, (1, 2)), TEXTS)) <= 1e-5


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    """Gradients of one backward after two forwards of batches that are padded differently."""
    model.train()
    model.zero_grad()
    first, second = (token_states(model, *pad_rows(texts, 0, CPU)) for texts in (TEXTS, TEXTS[1:2] * 2))
    (first[:, 0].sum() * second[:, 0].square().sum()).backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@RENAMED
@pytest.mark.parametrize("variant", ["sequential", "parallel"])
@pytest.mark.parametrize("options", [{"use_reentrant": False}, {"use_reentrant": True}, None], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_gradient_checkpointing_gives_the_same_gradients(
    name: str, options: dict[str, bool] | None, variant: Variant
) -> None:
    model = copy.deepcopy(open_layers(decoder(name), (1, 2), variant=variant))
    wanted = gradients(model)
    model.gradient_checkpointing_enable(options)
    model.enable_input_require_grads()
    calls = []
    get_layers(model)[1].attention[0].register_forward_hook(lambda *_: calls.append(1))
    found = gradients(model)
    assert len(calls) == 4  # Two forwards, and each once more on the way back.
    assert wanted.keys() == found.keys()
    largest = max(grad.norm() for grad in wanted.values())
    assert max(((found[name] - wanted[name]).norm() / largest).item() for name in wanted) <= 1e-6


def test_gradients_reach_the_past_from_the_future_only_through_open_layers() -> None:
    for model, sees in ((decoder("llama"), False), (open_layers(decoder("llama"), (1,)), True)):
        embeddings = model.get_input_embeddings()(torch.tensor(TEXTS[:1])).detach().requires_grad_()
        get_decoder(model)(inputs_embeds=embeddings, use_cache=False).last_hidden_state[0, 0].sum().backward()
        assert embeddings.grad is not None
        assert bool(embeddings.grad[0, 1:].any()) is sees


# Compilers


@pytest.mark.parametrize("variant", ["sequential", "parallel"])
@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_compiled_without_graph_breaks_gives_the_same_states(name: str, variant: Variant) -> None:
    model = get_decoder(open_layers(decoder(name), (1, 2), variant=variant))
    ids_BL, mask_BL = pad_rows(TEXTS, 0, CPU)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        wanted = model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
        found = compiled(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
    assert apart([found[mask_BL.bool()]], [wanted[mask_BL.bool()]]) <= 1e-6


class Exportable(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        states: Tensor = self.model(input_ids=ids_BL, attention_mask=mask_BL, use_cache=False).last_hidden_state
        return states


@pytest.mark.parametrize("variant", ["sequential", "parallel"])
def test_exported_program_gives_the_same_states(variant: Variant) -> None:
    model = Exportable(get_decoder(open_layers(decoder("llama"), (1, 2), variant=variant))).eval()
    ids_BL, mask_BL = pad_rows(TEXTS, 0, CPU)
    program = torch.export.export(model, (ids_BL, mask_BL), strict=False)
    with torch.no_grad():
        found, wanted = program.module()(ids_BL, mask_BL), model(ids_BL, mask_BL)
    assert apart([found[mask_BL.bool()]], [wanted[mask_BL.bool()]]) <= 1e-6


# Kernels and caches


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text"])
def test_packed_documents_do_not_leak_into_each_other(name: str, backend: str) -> None:
    model = open_layers(decoder(name, backend), (0, 1, 2))
    documents = TEXTS[:3]
    ids_1L = torch.tensor([[token for text in documents for token in text]])
    positions_1L = torch.tensor([[place for text in documents for place in range(len(text))]])
    with torch.inference_mode():
        packed = get_decoder(model)(input_ids=ids_1L, position_ids=positions_1L, use_cache=False).last_hidden_state[0]
    assert apart(packed.split(list(map(len, documents))), [alone(model, text) for text in documents]) <= 5e-6


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # transformers' call of torch's compiler, torch's own imports
@pytest.mark.parametrize("window", ["keep", "open"])
@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_flex_attention_equals_sdpa(name: str, window: Any) -> None:
    model = open_layers(decoder(name), (1, 2), window=window)
    flexible = shared_copy(model)
    flexible.set_attn_implementation("flex_attention")
    with torch.compiler.set_stance("force_eager"):
        found = together(flexible, TEXTS)
    assert apart(found, together(model, TEXTS)) <= 5e-6


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text"])
def test_growing_cache_is_refused_with_the_way_to_generate(name: str) -> None:
    model = open_layers(decoder(name), (1, 2))
    with torch.inference_mode():
        first = model(torch.tensor(TEXTS[:1]), use_cache=True)
        with pytest.raises(LayerError, match=r"encoder\.causal\(\)"):
            model(torch.tensor([[5]]), past_key_values=first.past_key_values, use_cache=True)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_empty_cache_changes_nothing(name: str) -> None:
    model = open_layers(decoder(name), (1, 2))
    with torch.inference_mode():
        ids_1L = torch.tensor(TEXTS[:1])
        assert torch.equal(model(ids_1L, use_cache=True).logits, model(ids_1L, use_cache=False).logits)


def test_hook_keeps_nothing_from_call_to_call() -> None:
    model = open_layers(decoder("llama"), (1,))
    hook = next(iter(get_layers(model)[1].attention[0]._forward_pre_hooks.values()))
    assert isinstance(hook, BidirectionalMaskHook)
    before = dict(vars(hook))
    together(model, TEXTS)
    assert vars(hook) == before


# The hook alone, called as architectures outside the catalogue may call their attention


def called(
    *args: Any, takes_is_causal: bool = True, keep_window: bool = True, **kwargs: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    hook = BidirectionalMaskHook(keep_window, mask_position=1, takes_is_causal=takes_is_causal)
    return hook(nn.Identity(), args, kwargs)


HIDDEN_BLD = torch.zeros(1, 3, 4)
CAUSAL_11LL = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()


def test_positional_mask_is_opened_in_its_place() -> None:
    args, kwargs = called(HIDDEN_BLD, CAUSAL_11LL, "cache")
    assert args[0] is HIDDEN_BLD
    assert bool(args[1].all())
    assert args[2] == "cache"
    assert kwargs == {"is_causal": False}


def test_every_mask_of_a_dictionary_is_opened() -> None:
    _, kwargs = called(HIDDEN_BLD, attention_mask={"full": CAUSAL_11LL, "none": None})
    assert bool(kwargs["attention_mask"]["full"].all())
    assert kwargs["attention_mask"]["none"] is None


def test_flash_attention_gets_its_padding_mask_as_it_is_and_is_told_not_to_be_causal() -> None:
    padding_BL = torch.tensor([[1, 1, 0]])
    _, kwargs = called(HIDDEN_BLD, attention_mask=padding_BL)
    assert kwargs["attention_mask"] is padding_BL
    assert kwargs["is_causal"] is False


def test_missing_mask_becomes_one_that_lets_all_meet_where_nothing_else_would_open_the_kernel() -> None:
    _, kwargs = called(HIDDEN_BLD, takes_is_causal=False)
    assert torch.equal(kwargs["attention_mask"], torch.zeros(1, 1, 3, 3))
    _, kwargs = called(HIDDEN_BLD)
    assert kwargs == {"attention_mask": None, "is_causal": False}


def test_callers_arguments_are_not_written_to() -> None:
    given = {"attention_mask": CAUSAL_11LL.clone()}
    BidirectionalMaskHook(True, 1, True)(nn.Identity(), (HIDDEN_BLD,), given)
    assert given.keys() == {"attention_mask"}
    assert torch.equal(given["attention_mask"], CAUSAL_11LL)
