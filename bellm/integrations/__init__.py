"""Encoders as the classes that other libraries ask for; a library is imported when its class is first asked for."""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.integrations.sentence_transformer import EncoderModule, as_sentence_transformer

__all__ = ["EncoderModule", "as_sentence_transformer"]

_NEEDS = {"EncoderModule": "sentence_transformers", "as_sentence_transformer": "sentence_transformers"}

__getattr__, __dir__ = lazy_exports(__name__, needs=_NEEDS)
