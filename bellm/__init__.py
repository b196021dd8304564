"""bellm: sentence embeddings from any decoder-only language model, its attention layers opened one by one."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bellm.config import EncoderConfig
from bellm.errors import BellmError, BellmWarning
from bellm.prompts import Prompt
from bellm.version import __version__

if TYPE_CHECKING:
    from bellm.doctor import diagnose
    from bellm.encoder import Encoder
    from bellm.pool import EncoderPool

__all__ = ["BellmError", "BellmWarning", "Encoder", "EncoderConfig", "EncoderPool", "Prompt", "__version__", "diagnose"]

_WITH_TORCH = {"Encoder": "encoder", "EncoderPool": "pool", "diagnose": "doctor"}


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first asked for: `bellm --help` needs neither."""
    if name in _WITH_TORCH:
        return getattr(import_module(f"bellm.{_WITH_TORCH[name]}"), name)
    raise AttributeError(f"module 'bellm' has no attribute {name!r}")
