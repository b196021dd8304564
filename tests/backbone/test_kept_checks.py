"""What a model passed in another process is measured again as soon as anything about it is another."""

import copy
import sys
from collections.abc import Callable
from functools import partial, partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, LlamaForCausalLM, PreTrainedModel, masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama

from bellm import Encoder
from bellm.backbone import kept_checks, leakage
from bellm.backbone.architecture import get_layers
from bellm.backbone.attention import BidirectionalMaskHook, open_layers
from bellm.backbone.kept_checks import KeptCheck, mark_loaded
from bellm.backbone.leakage import measure_leakage
from bellm.doctor import diagnose
from bellm.engine import packing_check
from bellm.engine.packing_check import check_packing
from bellm.errors import LayerError
from tests.decoders import CASES, decoder
from tests.processes import run

PROGRAM = """
import sys
from bellm import Encoder
from bellm.backbone import leakage
from bellm.engine import packing_check

def counted(module, name):
    function = getattr(module, name)
    def call(*args):
        print(name)
        return function(*args)
    setattr(module, name, call)

counted(leakage, "measure_leakage")
counted(packing_check, "_distance")
encoder = Encoder.from_pretrained(sys.argv[1])
print(encoder.batching_mode)
"""


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("BELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checks"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was measured."""
    names: list[str] = []

    def count(module: Any, name: str) -> None:
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args: (names.append(name), function(*args))[1])

    count(leakage, "measure_leakage")
    count(packing_check, "_distance")
    return names


def loaded(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """A copy with weights of its own, as if bellm had loaded it."""
    own = copy.deepcopy(model)
    mark_loaded(own)
    return own


def test_another_process_does_not_measure_again(tiny_folder: Path, folder: Path) -> None:
    def measured_by_process() -> list[str]:
        done = run([sys.executable, "-c", PROGRAM, tiny_folder])
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    assert measured_by_process() == ["measure_leakage", "_distance", "packed"]
    assert sorted(path.name.split("-")[0] for path in folder.iterdir()) == ["leakage", "packing"]
    assert measured_by_process() == ["packed"]


def test_what_was_kept_is_taken_by_every_load_and_gives_the_same_vectors(
    tiny_folder: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Encoder.from_pretrained(tiny_folder).encode(["Snow fell all night."])
    assert measured == ["measure_leakage", "_distance"]
    again = Encoder.from_pretrained(tiny_folder)
    assert (again.encode(["Snow fell all night."]) == first).all()
    assert measured == ["measure_leakage", "_distance"]
    again.replace(bidirectional="last:3").encode(["Snow"])
    assert measured == ["measure_leakage", "_distance"] * 2
    monkeypatch.setenv("BELLM_KEEP_CHECKS", "0")
    Encoder.from_pretrained(tiny_folder)
    assert measured == ["measure_leakage", "_distance"] * 3


def test_the_doctor_measures_always(tiny_folder: Path, measured: list[str]) -> None:
    Encoder.from_pretrained(tiny_folder)
    encoder = Encoder.from_pretrained(tiny_folder)
    measured.clear()
    diagnosis = diagnose(encoder)
    assert "_distance" in measured
    assert next(check for check in diagnosis.checks if check.name == "packed equals padded").value is not None


def test_models_of_others_are_not_kept(tiny_model: LlamaForCausalLM, folder: Path) -> None:
    model = open_layers(tiny_model, [2])
    KeptCheck("some", model).keep()
    check_packing(model)
    leakage.check_open_layers(model)
    assert not folder.exists()


def test_what_failed_is_not_kept(
    tiny_model: LlamaForCausalLM, folder: Path, monkeypatch: pytest.MonkeyPatch, measured: list[str]
) -> None:
    model = open_layers(loaded(tiny_model), [2])
    monkeypatch.setattr(packing_check, "_distance", lambda *_: 1.0)
    assert check_packing(model).packed_model is None
    for layer in get_layers(model):
        nn.init.zeros_(layer.module.self_attn.v_proj.weight)  # type: ignore[arg-type, union-attr]
    for _ in range(2):
        with pytest.raises(LayerError):
            leakage.check_open_layers(model)
    assert measured == ["measure_leakage"] * 2
    assert not folder.exists()


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"passed": true}', "\0\xff", None], ids=repr)
def test_a_damaged_file_is_replaced(tiny_model: LlamaForCausalLM, folder: Path, content: str | None) -> None:
    model = open_layers(loaded(tiny_model), [2])
    KeptCheck("some", model).keep()
    [file] = folder.iterdir()
    kept = file.read_bytes()
    if content is None:
        file.unlink()
        file.mkdir()
    else:
        file.write_text(content)
    check = KeptCheck("some", model)
    assert not check.passed
    check.keep()
    assert content is None or (file.read_bytes() == kept and KeptCheck("some", model).passed)


def test_a_check_is_of_one_name(tiny_model: LlamaForCausalLM) -> None:
    model = loaded(tiny_model)
    KeptCheck("some", model).keep()
    assert KeptCheck("some", model).passed
    assert not KeptCheck("other", model).passed


Change = Callable[[LlamaForCausalLM, pytest.MonkeyPatch], Any]


def attention(model: PreTrainedModel) -> Any:
    return get_layers(model)[1].attention[0]


def patch(owner: object, name: str, value: object) -> Change:
    return lambda _, monkeypatch: monkeypatch.setattr(owner, name, value)


def wrap(owner: Any, name: str, wrapper: Callable[[Any], Any]) -> Change:
    return patch(owner, name, wrapper(getattr(owner, name)))


def passing(function: Any) -> Any:
    return lambda *args, **kwargs: function(*args, **kwargs)


class OtherLinear(nn.Linear):
    pass


class Caller:
    """What can be called, and is no function."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def register_for_one_file(interface: Any) -> Change:
    """A function of another, registered with the instance that files of models share."""
    return lambda _, monkeypatch: monkeypatch.setitem(interface._local_mapping, "sdpa", passing(interface["sdpa"]))


CHANGES: dict[str, Change] = {
    "weight": lambda model, _: attention(model).q_proj.weight.data[3, 5].add_(1e-3),
    "buffer": lambda model, _: model.model.rotary_emb.inv_freq.mul_(1.001),
    "dtype": lambda model, _: model.to(torch.float64),  # type: ignore[arg-type]
    "configuration": lambda model, _: setattr(model.config, "rms_norm_eps", 1e-7),
    "attribute": lambda model, _: setattr(attention(model), "scaling", 0.3),
    "attention": lambda model, _: model.set_attn_implementation("eager"),
    "layer": lambda model, _: setattr(model.model, "layers", model.model.layers[:3]),
    "order of layers": lambda model, _: setattr(model.model, "layers", model.model.layers[::-1]),
    "module": lambda model, _: setattr(attention(model), "q_proj", OtherLinear(32, 32, bias=False)),
    "hook": lambda model, _: attention(model).register_forward_hook(lambda *_: None),
    "forward of a module": lambda model, _: setattr(attention(model), "forward", passing(attention(model).forward)),
    "forward of a class": wrap(modeling_llama.LlamaAttention, "forward", passing),
    "wrapped by torch": wrap(modeling_llama.LlamaAttention, "forward", lambda f: torch.no_grad()(passing(f))),
    "function": wrap(modeling_llama, "apply_rotary_pos_emb", passing),
    "function of transformers": patch(modeling_llama, "apply_rotary_pos_emb", modeling_gptj.apply_rotary_pos_emb),
    "mask": wrap(sys.modules["transformers.masking_utils"], "sdpa_mask", passing),
    "function of torch": wrap(functional, "silu", passing),
    "hook of bellm": wrap(BidirectionalMaskHook, "__call__", passing),
    "registered attention": lambda _, monkeypatch: monkeypatch.setitem(
        AttentionInterface._global_mapping, "sdpa", passing(sdpa_attention_forward)
    ),
    "attention registered for one file": register_for_one_file(modeling_llama.ALL_ATTENTION_FUNCTIONS),
    "mask registered for one file": register_for_one_file(masking_utils.ALL_MASK_ATTENTION_FUNCTIONS),
    "object that is called": wrap(modeling_llama, "apply_rotary_pos_emb", Caller),
    "object in a class": wrap(modeling_llama.LlamaAttention, "forward", Caller),
    "arguments of a function": wrap(modeling_llama, "apply_rotary_pos_emb", lambda f: partial(f, unsqueeze_dim=2)),
    "arguments of a method": wrap(modeling_llama.LlamaAttention, "forward", lambda f: partialmethod(f, past=None)),
    "kernel of torch": wrap(functional, "scaled_dot_product_attention", lambda f: partial(f, is_causal=True)),
    "object for a kernel of torch": wrap(functional, "scaled_dot_product_attention", Caller),
    "product of torch": wrap(torch, "matmul", passing),
    "operator of torch": wrap(torch.Tensor, "__matmul__", passing),
    "version of bellm": patch(kept_checks, "__version__", "9"),
    "version of torch": patch(torch, "__version__", "9"),
    "version of transformers": patch(kept_checks.transformers, "__version__", "9"),
    "version of python": patch(sys, "version", "9"),
    "processor": patch(torch.backends.cpu, "get_cpu_capability", lambda: "other"),
    "code of bellm": wrap(Path, "read_bytes", lambda read: lambda path: read(path) + b"#"),
    "precision of products": patch(torch, "get_float32_matmul_precision", lambda: "medium"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_anything_else_is_measured_anew(
    tiny_model: LlamaForCausalLM, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_layers(loaded(tiny_model), [2])
    KeptCheck("some", model).keep()
    assert KeptCheck("some", model).passed
    CHANGES[name](model, monkeypatch)
    assert not KeptCheck("some", model).passed


def test_hooks_on_all_modules_are_seen(tiny_model: LlamaForCausalLM) -> None:
    model = loaded(tiny_model)
    KeptCheck("some", model).keep()
    handle = register_module_forward_hook(lambda *_: None)
    try:
        assert not KeptCheck("some", model).passed
    finally:
        handle.remove()
    assert KeptCheck("some", model).passed


class PassingFunctions(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class PassingOperators(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [PassingFunctions, PassingOperators])
def test_what_takes_every_call_of_torch_is_seen(tiny_model: LlamaForCausalLM, mode: Any) -> None:
    model = loaded(tiny_model)
    KeptCheck("some", model).keep()
    with mode():
        assert not KeptCheck("some", model).passed
    assert KeptCheck("some", model).passed


def test_code_of_others_is_not_kept(
    tiny_model: LlamaForCausalLM, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(tiny_model)
    for owner, name in ((modeling_llama, "apply_rotary_pos_emb"), (modeling_llama.LlamaMLP, "forward")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, Caller(getattr(owner, name)))
            KeptCheck("some", model).keep()
    assert not folder.exists()


@pytest.mark.parametrize("opened", [[1], [2, 3]], ids=str)
@pytest.mark.parametrize("settings", [{"variant": "parallel"}, {"window": "ignore"}], ids=str)
def test_the_map_and_its_settings_count(tiny_model: LlamaForCausalLM, opened: list[int], settings: Any) -> None:
    model = loaded(tiny_model)
    KeptCheck("some", open_layers(model, [2])).keep()
    assert KeptCheck("some", open_layers(model, [2])).passed
    assert not KeptCheck("some", open_layers(model, opened)).passed
    assert not KeptCheck("some", open_layers(model, [2], **settings)).passed


@pytest.mark.parametrize(("name", "how"), CASES)
def test_any_architecture_is_recognised(name: str, how: str) -> None:
    """Before and after its layers ran, and in every copy."""
    model = copy.copy(decoder(name, how))
    vars(model).update(vars(model).copy())
    mark_loaded(model)
    opened = open_layers(model, range(4))
    KeptCheck("some", opened).keep()
    measure_leakage(opened)
    for same in (opened, open_layers(model, range(4))):
        assert KeptCheck("some", same).passed
