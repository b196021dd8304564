"""What runs on a GPU, but for its kernel: a reference in float64 stands in for that of torch."""

import copy
from collections.abc import Iterator
from inspect import signature

import pytest
import torch
from tiny import tiny
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.backbone.architecture import get_layers
from bellm.backbone.attention import open_layers
from bellm.backbone.packed_model import PackedModel
from bellm.backbone.packed_pass import AttentionKernel, attention_kernels
from bellm.backbone.routing import find_routers
from bellm.engine.concurrency import one_ahead
from bellm.engine.packed import PackedRunner
from bellm.engine.packing_check import check_packing
from bellm.engine.readout import HiddenStateReadout
from bellm.errors import KernelWarning
from bellm.train.objectives import InfoNCE
from bellm.train.train_step import TrainStep
from bellm.types import PoolingName

from ..decoders import decoder, openable
from ..kernel_reference import varlen_attn, varlen_attn_210
from ..train import reference
from ..train.rows import triplets
from .test_packed import PADDED, STEM, WINDOWS, apart, tokens_of

NAMES = [
    "apertus", "arcee", "cohere", "cohere2", "ernie4_5", "exaone4", "gemma", "gemma3_text", "glm", "glm4", "gpt_neox",
    "granite", "granitemoe", "helium", "hunyuan_v1_dense", "llama", "ministral3", "mistral", "mixtral", "nemotron",
    "olmo", "olmo2", "olmo3", "olmoe", "opt", "phi", "phi3", "qwen2", "qwen3", "qwen3_moe", "seed_oss", "smollm3",
    "stablelm", "starcoder2",
]  # fmt: skip
FEW = {"gemma3_text", "llama", "olmoe"}
SOON = {*FEW, "cohere2", "gpt_neox", "mixtral", "nemotron", "opt", "phi3", "qwen3"}
assert len(NAMES) > 30
assert not {*NAMES} & PADDED

ROWS = tokens_of(
    [[*STEM, 13], [*STEM, 14, 15, 16], [*STEM, 14, 15, 17, 18, 19], [7, 8, 30], [7, 8, 30, 31], [40], [41, *STEM * 3]]
)


@pytest.fixture
def varlen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch whose kernel runs on this machine."""
    monkeypatch.setattr("bellm.tensors.varlen.varlen_attn", varlen_attn)


def vectors(packed: PackedModel, pooling: PoolingName, budget: int) -> Tensor:
    runner = PackedRunner(packed, ROWS, HiddenStateReadout(pooling))
    groups = runner.batches(range(len(ROWS)), budget)
    found = torch.cat([runner.vectors(group) for group in groups])
    return found[torch.tensor([row for group in groups for row in group]).argsort()]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    "name", [name if name in SOON else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
@torch.inference_mode()
def test_vectors_are_those_of_the_cpu(varlen: None, name: str) -> None:
    plain = tiny(name)
    if not find_routers(plain):  # Kernels of experts take no float64; other sums are 2e-6 apart in float32.
        plain = plain.double()
    numbers = openable(plain)
    upper = numbers[len(numbers) // 2 :]
    windows = WINDOWS if any(":" in layer.kind for layer in get_layers(plain)) else WINDOWS[:1]
    for window in windows:
        for chosen, pooling in (([], "last"), (upper, "last"), (upper, "mean"), (numbers, "mean")):
            assert_same(open_layers(plain, chosen, window=window), "varlen", pooling)
    if name in FEW:
        assert_same(open_layers(plain, upper, variant="parallel"), "varlen", "last")
        assert_same(open_layers(plain, upper), "flex", "mean")


def assert_same(model: PreTrainedModel, kernel: AttentionKernel, pooling: PoolingName) -> None:
    found, wanted = (vectors(PackedModel(model, each), pooling, 30) for each in (kernel, "blocks"))
    assert apart(found, wanted) <= 1e-6


def test_the_kernels_of_a_device() -> None:
    cpu, cuda, other = map(torch.device, ("cpu", "cuda", "mps"))
    assert [attention_kernels("sdpa", device) for device in (cpu, cuda, other)] == [
        ("blocks",),
        ("varlen", "flex", "padded"),
        ("padded",),
    ]
    assert [attention_kernels("eager", device) for device in (cpu, cuda, other)] == [
        ("padded",),
        ("flex", "padded"),
        ("padded",),
    ]


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are chosen as on a GPU."""
    cuda = torch.device("cuda")
    monkeypatch.setattr(
        "bellm.engine.packing_check.attention_kernels", lambda attention, _: attention_kernels(attention, cuda)
    )


def fresh(tiny_encoder: Encoder) -> Encoder:
    """An encoder whose kernel is not chosen yet."""
    return tiny_encoder.replace(bidirectional="last:2")


def test_the_first_kernel_that_computes_the_same_is_taken(
    as_on_cuda: None, varlen: None, tiny_encoder: Encoder, recwarn: pytest.WarningsRecorder
) -> None:
    encoder = fresh(tiny_encoder)
    wanted = tiny_encoder.replace(bidirectional="last:2")
    assert encoder.attention_kernel == "varlen"
    assert not recwarn.list
    texts = ["A heron stands in the river.", "The heron", "Snow fell on the hills all night.", ""]
    assert apart(*(torch.from_numpy(each.encode(texts)) for each in (encoder, wanted))) <= 1e-6


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_kernel_that_fails_is_named_with_its_reason(as_on_cuda: None, tiny_encoder: Encoder) -> None:
    encoder = fresh(tiny_encoder)
    with pytest.warns(KernelWarning, match="Attention is computed by flex, not by varlen: ") as warned:
        assert (encoder.attention_kernel, encoder.batching_mode) == ("flex", "packed")
    assert len(warned) == 1  # However often it is asked.


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_kernel_that_aligns_queries_elsewhere_is_not_taken(
    as_on_cuda: None, monkeypatch: pytest.MonkeyPatch, tiny_encoder: Encoder
) -> None:
    """As kernels did before flash-attn 2.1: a short block of queries at the beginning of its keys."""

    def misaligned(query: Tensor, key: Tensor, value: Tensor, *lengths: object, **options: object) -> Tensor:
        cu_q, cu_k, max_q, _ = lengths
        kept = torch.cat([torch.arange(k, k + q) for k, q in zip(cu_k[:-1], cu_q.diff(), strict=True)])
        return varlen_attn(query, key[kept], value[kept], cu_q, cu_q, max_q, max_q, **options)

    misaligned.__signature__ = signature(varlen_attn)
    monkeypatch.setattr("bellm.tensors.varlen.varlen_attn", misaligned)
    with pytest.warns(KernelWarning, match="not by varlen: packed vectors differ from padded ones"):
        assert fresh(tiny_encoder).attention_kernel == "flex"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("name", "kernel"), [("gemma2", "flex"), ("gpt_oss", "padded")])
def test_caps_and_sinks(as_on_cuda: None, name: str, kernel: str) -> None:
    model = open_layers(decoder(name, "eager"), openable(decoder(name, "eager"))[-1:])
    if kernel == "padded":
        with pytest.warns(KernelWarning, match="not by flex: this model's attention has sinks"):
            check = check_packing(model)
    else:
        check = check_packing(model)
    assert check.packed_model is not None
    assert check.packed_model.kernel == kernel


def test_a_training_step_has_the_gradients_of_the_cpu(
    as_on_cuda: None, varlen: None, monkeypatch: pytest.MonkeyPatch, own: Encoder
) -> None:
    encoder = own.replace(bidirectional="last:2", pooling="mean")
    assert encoder.attention_kernel == "varlen"
    found = step(encoder)
    monkeypatch.undo()
    encoder = own.replace(bidirectional="last:2", pooling="mean")
    assert encoder.attention_kernel == "blocks"
    wanted = step(encoder)
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    assert reference.distance(found[1], wanted[1]) < 1e-4  # Rounding of four layers in float32.


def step(encoder: Encoder) -> tuple[float, dict[str, Tensor]]:
    loss = TrainStep(encoder, InfoNCE(), chunk_tokens=60, max_held_tokens=1 << 30).learn(triplets(5), 0).loss
    return loss, reference.gradients(encoder.model)


@pytest.fixture
def own(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """An encoder whose weights nobody else has."""
    return Encoder.from_pretrained(copy.deepcopy(tiny_model), tokenizer=tiny_tokenizer)


def test_the_first_torch_with_such_a_kernel(
    as_on_cuda: None, monkeypatch: pytest.MonkeyPatch, tiny_encoder: Encoder
) -> None:
    monkeypatch.setattr("bellm.tensors.varlen.varlen_attn", varlen_attn_210)
    encoder = fresh(tiny_encoder)
    assert encoder.attention_kernel == "varlen"


def test_a_device_computes_one_batch_ahead() -> None:
    begun: list[int] = []

    def work() -> Iterator[int]:
        for number in range(4):
            begun.append(number)
            yield number

    seen = [(number, len(begun)) for number in one_ahead(work())]
    assert seen == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert list(one_ahead(iter(()))) == []
