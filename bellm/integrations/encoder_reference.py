"""What databases and pipelines keep of an encoder as JSON, and the same encoder from it, in this process or another."""

import json
from collections.abc import Mapping
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from bellm.config import EncoderConfig
from bellm.encoder import Encoder
from bellm.errors import FingerprintError, SourceError
from bellm.saved_encoder import FINGERPRINT_TEXTS
from bellm.tensors.similarity import relative_distance, tolerances
from bellm.types import Vectors

_NUMBERS = 16  # Of a fixed text's vector: few enough to be kept beside a collection, and no two models share them.

_in_use: WeakValueDictionary[str, Encoder] = WeakValueDictionary()
"""Encoders of this process by their references: libraries make an object anew from what they keep of it."""


def encoder_to_json(encoder: Encoder) -> dict[str, Any]:
    """Source, dtype and settings of an encoder, with the first numbers of a fixed text's vector."""
    values = {
        "source": encoder.source,
        "dtype": encoder.dtype_name,
        "vector": [round(float(number), 6) for number in _vector(encoder)],
        **encoder.config.to_dict(),
    }
    _in_use[json.dumps(values, sort_keys=True)] = encoder
    return values


def encoder_from_json(values: Mapping[str, Any]) -> Encoder:
    """The encoder of which `encoder_to_json` gave this, loaded if it is not in use.

    Raises:
        FingerprintError: What lies at its source now gives other vectors.
        SourceError: Its source cannot be loaded, or this says of no encoder.
    """
    if encoder := _in_use.get(json.dumps(values, sort_keys=True)):
        return encoder
    try:
        source, dtype, vector = values["source"], values["dtype"], np.array(values["vector"], dtype=np.float32)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else "its vector is no list of numbers"
        raise SourceError(f"This is no reference to an encoder, as encoder_to_json gives it: {reason}.") from error
    encoder = Encoder.from_pretrained(source, config=EncoderConfig.from_dict(values), dtype=dtype)
    distance, limit = relative_distance(_vector(encoder)[None], vector[None]), tolerances(dtype, encoder.dtype_name)
    if distance > limit.fingerprint:
        raise FingerprintError(
            f"{source} does not give the vectors that it gave (relative distance {distance:.3g}, allowed "
            f"{limit.fingerprint:g}): put back the model that was there, or embed anew."
        )
    _in_use[json.dumps(values, sort_keys=True)] = encoder
    return encoder


def _vector(encoder: Encoder) -> Vectors:
    return encoder.encode_with_stats(FINGERPRINT_TEXTS[:1]).vectors[0, :_NUMBERS]
