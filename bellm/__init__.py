"""bellm: sentence embeddings from any decoder-only language model, its attention layers opened one by one."""

from typing import TYPE_CHECKING

from bellm.config import EncoderConfig
from bellm.errors import BellmError, BellmWarning
from bellm.extras import lazy_exports
from bellm.prompts import Prompt
from bellm.version import __version__

if TYPE_CHECKING:
    from bellm.doctor import diagnose
    from bellm.encoder import Encoder
    from bellm.engine.graph_encoder import GraphEncoder
    from bellm.multiview import MultiViewEncoder
    from bellm.pool import EncoderPool

__all__ = ["BellmError", "BellmWarning", "Encoder", "EncoderConfig", "EncoderPool", "GraphEncoder"]
__all__ += ["MultiViewEncoder", "Prompt", "__version__", "diagnose"]

__getattr__, __dir__ = lazy_exports(__name__)  # These need torch, and `bellm --help` does not.
