"""Keep the weights of an encoder in 8 or 4 bits."""

from typing import get_args

from bellm.backbone.architecture import get_decoder
from bellm.backbone.hooks import shared_copy
from bellm.backbone.quantized_modules import Bits, quantize_modules
from bellm.backbone.weight_matrices import find_matrices
from bellm.encoder import Encoder
from bellm.errors import BellmError, check_encoder


def quantize(encoder: Encoder, bits: Bits = 8) -> Encoder:
    """Give an encoder whose weights take 8 or 4 bits, in memory and on disk; the given one stays as it is.

    The matrices of the decoder layers have a scale for each row in 8 bits, and a scale and a minimum for every 32
    weights in 4 bits, which makes 5 bits a weight. The embedding table has 8 bits either way. The head that predicts
    tokens is left out where the model can do without, because no vector needs it. Products are computed in the dtype of
    the encoder, from matrices that are expanded for each: they are not faster.

    Raises:
        BellmError: bits is neither 8 nor 4.
        LayerError: Weights are quantized already, fused into one tensor for several experts, or apart from adapters.
    """
    check_encoder(encoder, Encoder)
    if bits not in get_args(Bits):
        raise BellmError(f"bits={bits} is not one of {', '.join(map(str, get_args(Bits)))}.")
    encoder.check_uncentered("quantizing")
    find_matrices(encoder.model)
    before = num_bytes(encoder)
    model = shared_copy(encoder.model)
    if model.base_model is get_decoder(model):
        model = model.base_model
    quantize_modules(model, bits)
    smaller = encoder.with_model(model)
    after = num_bytes(smaller)
    return smaller.with_compression(
        {
            "kind": "quantize",
            "summary": f"weights in {bits} bits ({before / 1e6:.1f} MB to {after / 1e6:.1f} MB)",
            "bits": bits,
            "bytes": after,
        }
    )


def num_bytes(encoder: Encoder) -> int:
    """Bytes of the weights, each counted once."""
    weights = {id(weight): weight for weight in (*encoder.model.parameters(), *encoder.model.buffers())}
    return sum(weight.numel() * weight.element_size() for weight in weights.values())
