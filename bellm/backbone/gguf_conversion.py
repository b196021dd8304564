"""GGUF files as folders of safetensors in bellm's cache, converted once."""

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from bellm.errors import SourceError
from bellm.io.cache import MODELS_KIND, cached_directory, find_cached

_GROWTH = 12
"""Most bytes of a converted file for each of its own: float32 from two bits and a scale."""

ModelParts = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def conversion_name(file_name: str, digest: str) -> str:
    """Name in the cache of a file with this SHA-256; another version of transformers may convert another way."""
    key = hashlib.sha256(f"{digest} {transformers.__version__}".encode()).hexdigest()[:16]
    return f"{file_name.removesuffix('.gguf')}-{key}"


def converted_folder(file: Path, load: Callable[[], ModelParts]) -> Path | None:
    """Folder of a GGUF file's model and tokenizer in float32; None where the cache does not take it.

    `load` reads model and tokenizer, and is called where they are not in the cache.
    """
    with file.open("rb") as stream:  # 55 ms for 98 MB, where the processor has instructions for it.
        name = conversion_name(file.name, hashlib.file_digest(stream, "sha256").hexdigest())
    if folder := find_cached(MODELS_KIND, name):
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise SourceError(f"{file} needs the packages that read GGUF files: pip install 'bellm[gguf]'.")

    def read() -> ModelParts:
        with _quick_and_quiet():
            return load()

    return cached_directory(MODELS_KIND, name, _GROWTH * file.stat().st_size, read, _save)


def _save(parts: ModelParts, folder: Path) -> None:
    with _quick_and_quiet():
        for part in parts:
            part.save_pretrained(folder)


@contextmanager
def _quick_and_quiet() -> Iterator[None]:
    """Inside, transformers parses a GGUF file once, not thrice, makes its map of names once, not for each module.

    Its progress bars are shown at a terminal alone.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils

    patched: dict[tuple[Any, str], Any] = {
        (gguf, "GGUFReader"): cache(gguf.GGUFReader),
        (gguf, "get_tensor_name_map"): cache(gguf.get_tensor_name_map),
        (modeling_gguf_pytorch_utils, "tqdm"): partial(modeling_gguf_pytorch_utils.tqdm, disable=None),
    }
    before = {place: getattr(*place) for place in patched}
    silenced = transformers_logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    try:
        for (module, name), value in patched.items():
            setattr(module, name, value)
        if silenced:
            transformers_logging.disable_progress_bar()
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)
        if silenced:
            transformers_logging.enable_progress_bar()
