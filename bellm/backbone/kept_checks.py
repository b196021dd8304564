"""Keep in bellm's cache that a model passed a check, so that the next process need not repeat it.

What is kept belongs to a model as it is in memory: its modules with all their attributes, hooks and weights, its
configuration, the code that runs them, the versions of the packages and the machine. Only models that bellm loaded
count, without any code but that of the packages below, and only checks that were passed. BELLM_KEEP_CHECKS=0 keeps and
takes none.
"""

import hashlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial, partialmethod
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.utils.generic import GeneralInterface

import bellm
from bellm.backbone.architecture import get_text_config
from bellm.backbone.hooks import RECORDS, is_recorder
from bellm.io.cache import CHECKS_KIND, keep_json, kept_json
from bellm.version import __version__

SWITCH = "BELLM_KEEP_CHECKS"

_LOADED = "bellm_loaded"

_MODEL_CODE = ("bellm.backbone", "peft.", "torch.nn.", "transformers.")
_PACKAGES = {"bellm", "peft", "torch", "transformers", *sys.stdlib_module_names, "builtins", "typing_extensions"}
_PACKAGES |= {"accelerate", "filelock", "httpx", "huggingface_hub", "numpy", "packaging", "regex", "requests"}
_PACKAGES |= {"safetensors", "tokenizers", "tqdm", "yaml"}
"""Packages whose functions the modules of a model may hold: bellm's, and what they require."""

_NAMES = {RECORDS, "name_or_path", "_name_or_path", "_commit_hash", "generation_config"}
"""Attributes that no vector depends on."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, Enum)

_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)

_GLOBAL_HOOKS = [name for name in vars(torch_module) if name.startswith("_global_") and name.endswith("_hooks")]


def mark_loaded(model: PreTrainedModel) -> None:
    """Note that bellm loaded a model; its copies bear the mark, too."""
    vars(model)[_LOADED] = True


class KeptCheck:
    """A check of a model as it is now, which it may have passed in another process."""

    def __init__(self, name: str, model: PreTrainedModel) -> None:
        """Look for it in the cache; `name` is that of the check."""
        digest = _digest(name, model)
        self._file = f"{name}-{type(model).__name__}-{digest[:16]}.json" if digest else ""
        self._content = {"bellm": __version__, "check": name, "model": type(model).__name__, "passed": digest}
        self.passed = bool(digest) and kept_json(CHECKS_KIND, self._file) == self._content

    def keep(self) -> None:
        """Keep that the model has passed."""
        if self._file:
            keep_json(CHECKS_KIND, self._file, self._content)


class _ForeignError(Exception):
    """A model has a part that nothing is known of."""


def _digest(name: str, model: PreTrainedModel) -> str:
    """Digest of all that decides the outcome of a check; empty where no outcome may be kept."""
    if _LOADED not in vars(model) or os.environ.get(SWITCH) == "0":
        return ""
    if any(getattr(torch_module, hooks) for hooks in _GLOBAL_HOOKS):
        return ""
    if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():  # They take every call of torch.
        return ""
    state = _State(str(get_text_config(model)._attn_implementation))  # type: ignore[attr-defined]
    try:
        state.add([name, *_surroundings(model.device), model, AttentionInterface(), AttentionMaskInterface()])
        state.add_code("torch", "torch.nn.functional")
    except (_ForeignError, KeyError, OSError):  # Its code, or the file of it, is not to be found.
        return ""
    return state.hash.hexdigest()


def _surroundings(device: torch.device) -> Iterator[Any]:
    """Versions and machine."""
    yield from (__version__, torch.__version__, transformers.__version__, sys.version, platform.machine())
    yield version("peft") if "peft" in sys.modules else ""
    yield from (torch.backends.cpu.get_cpu_capability(), torch.backends.mkldnn.enabled)
    yield from (torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled())
    if device.type == "cuda":
        yield from (torch.version.cuda, torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    yield [getattr(torch.backends.cuda, f"{kind}_sdp_enabled")() for kind in ("flash", "mem_efficient", "math")]
    for package in ("backbone", "engine", "tensors"):
        for file in sorted((Path(bellm.__file__).parent / package).glob("*.py")):
            yield file.read_bytes()


class _State:
    """Hashes objects by what they are made of."""

    def __init__(self, attention: str) -> None:
        self.hash = hashlib.sha256()
        self._attention = attention
        self._seen: dict[int, tuple[int, object]] = {}  # The objects too, so that no other has their id meanwhile.
        self._modules: set[str] = set()
        self._hooks: dict[int, int] = {}  # Torch's numbers of hooks, in the order in which they are met.

    def add(self, value: Any) -> None:
        """Hash a value; a _ForeignError where code of others has a part in it."""
        if isinstance(value, _PLAIN):
            self._put(f"{type(value).__name__} {value!r}")
        elif id(value) in self._seen:
            self._put(f"again {self._seen[id(value)][0]}")
        else:
            self._seen[id(value)] = len(self._seen), value
            self._add_new(value)

    def _add_new(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._put(_describe_tensor(value))
        elif isinstance(value, type):
            self._add_class(value)
        elif isinstance(value, FunctionType):
            self._add_function(value)
        elif isinstance(value, BuiltinFunctionType):
            self._put(f"{self._known(value.__module__ or 'builtins')} {value.__qualname__}")
        elif isinstance(value, MethodType | partial | partialmethod):
            parts = ("__func__", "__self__") if isinstance(value, MethodType) else ("func", "args", "keywords")
            self.add([getattr(value, part) for part in parts])
        elif isinstance(value, GeneralInterface):  # Of its functions, those under other names do not run.
            self.add([type(value), value.get(self._attention)])
        else:
            self.add(type(value))
            if isinstance(value, nn.Module):
                self._add_attributes(value)
            elif isinstance(value, Mapping):
                self.add([each for pair in value.items() for each in pair])
            elif isinstance(value, list | tuple):
                for each in value:
                    self.add(each)
            elif isinstance(value, set | frozenset):
                self.add(sorted(map(repr, value)))
            elif hasattr(value, "__dict__"):
                self.add({name: each for name, each in vars(value).items() if name not in _NAMES})
            else:
                raise _ForeignError(type(value))
        self._put("end")

    def _add_attributes(self, module: nn.Module) -> None:
        for name, value in vars(module).items():
            if name in _NAMES:
                continue
            self._put(name)
            if "hooks" in name and isinstance(value, dict):  # By numbers that torch counts on in a process.
                hooks = {key: each for key, each in value.items() if not is_recorder(each)}
                value = [(self._hooks.setdefault(key, len(self._hooks)), each) for key, each in hooks.items()]
            self.add(value)

    def _add_class(self, kind: type) -> None:
        for each in kind.__mro__:
            self._put(f"{self._known(each.__module__)} {each.__qualname__}")

    def _add_function(self, function: FunctionType) -> None:
        self._put(f"{self._known(_home(function))} {function.__qualname__}")
        for cell in function.__closure__ or ():
            if isinstance(inner := _content(cell), FunctionType):
                self.add(inner)

    def add_code(self, *modules: str) -> None:
        """Hash the code of these modules and of the classes and functions so far: files, and functions as they are."""
        self._modules |= set(modules)
        done: set[str] = set()
        while names := sorted(self._modules - done):  # Functions bring the modules that they are imported from.
            done |= self._modules
            for module in map(sys.modules.__getitem__, names):
                self._put(module.__name__)
                self.hash.update(Path(str(module.__file__)).read_bytes())
                for name, value in _code(module):
                    self._put(name)
                    known = isinstance(value, FunctionType | BuiltinFunctionType | partial | partialmethod)
                    self.add(value if known or isinstance(value, GeneralInterface) else type(value))

    def _known(self, module: str) -> str:
        """The name of a Python module whose code may run; one of those that run models is hashed, too."""
        package = module.partition(".")[0]
        if package not in _PACKAGES and not package.startswith("namedtuple_"):
            raise _ForeignError(module)
        if module.startswith(_MODEL_CODE):
            self._modules.add(module)
        return module

    def _put(self, text: str) -> None:
        self.hash.update(f"{text}\n".encode())


def _code(owner: ModuleType | type) -> Iterator[tuple[str, Any]]:
    """What can be called of a Python module and of its classes, by name; classes of other modules are left out."""
    for name, value in sorted(vars(owner).items(), key=itemgetter(0)):
        value = getattr(value, "__func__", value)  # Of a method of a class.
        if isinstance(value, type):
            if isinstance(owner, ModuleType) and value.__module__ == owner.__name__:
                yield from _code(value)
        elif callable(value) or isinstance(value, partialmethod | GeneralInterface):
            yield name, value


def _home(function: FunctionType) -> str:
    """Module that a function was written in, whatever module it says it is of."""
    return str(function.__globals__.get("__name__", ""))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # It is empty.
        return None


def _describe_tensor(tensor: Tensor) -> str:
    """Form of a tensor, and the sum of its bits as numbers."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_meta:
        raise _ForeignError
    flat = tensor.detach().reshape(-1)
    sizes = (flat.numel() * flat.element_size(), flat.storage_offset() * flat.element_size())
    word = next(each for each in _WORDS if not any(size % each.itemsize for size in sizes))
    total = int(flat.view(word).sum())
    return f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()} {tensor.device} {tensor.requires_grad} {total}"
