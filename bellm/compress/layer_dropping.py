"""Leave whole layers out of an encoder: those at the top, or those that change the states of texts least."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from bellm.backbone.layer_removal import keep_layers
from bellm.backbone.layerwise import LayerwisePass, equal_length_batches
from bellm.config import EncoderConfig
from bellm.encoder import Encoder
from bellm.engine.memory_budget import default_batch_tokens
from bellm.errors import BellmError, BellmWarning, LayerError, check_choice, check_encoder, warn
from bellm.layer_spec import format_layers

DropBy = Literal["top", "change"]
"""Layers from the top, as in the degradation curve of `bellm layers`; or those that change states least."""


def drop_layers(
    encoder: Encoder,
    number: int,
    *,
    by: DropBy = "top",
    texts: Sequence[str] = (),
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Encoder:
    """Give an encoder with fewer layers, which is smaller and faster; the given one stays as it is.

    Its final norm stays. Settings that name layers (open layers, pooled states, Token Prepending) name the same layers
    as before, as far as they are left.

    Args:
        encoder: Any encoder whose layers can be left out.
        number: How many layers go, 1 to all but one.
        by: `top` drops the last ones: `bellm layers --method degradation` scores every number of them. `change` drops
            those with the least change, see `layer_changes`.
        texts: Whose states are compared; `top` needs none.
        progress: Called with what is done, how many layers are, and how many there are.

    Raises:
        BellmError: The number does not fit, or texts are missing.
        LayerError: Weights are quantized, the layers are not all alike and the model cannot do without some, or pooled
            states become one.
    """
    check_encoder(encoder, Encoder)
    encoder.check_uncentered("dropping layers")
    check_choice("by", by, DropBy)
    num_layers = encoder.num_layers
    check_num_dropped(number, num_layers)
    changes: list[float] = []
    order = list(range(num_layers))[::-1]
    if by == "change":
        if not texts:
            raise BellmError("by=change asks which layers change the states of texts least: give calibration texts.")
        changes = layer_changes(encoder, texts, progress)
        order.sort(key=changes.__getitem__)
    kept = sorted(order[number:])
    dropped = sorted(order[:number])
    config = _renumbered(encoder.config, kept, num_layers)
    model = keep_layers(encoder.model, kept)
    smaller = Encoder.from_pretrained(model, tokenizer=encoder.tokenizer, config=config)
    smaller.name, smaller.source, smaller.compression = encoder.name, encoder.source, encoder.compression
    if encoder.config.bidirectional and not config.bidirectional:
        warn(
            f"All open layers ({format_layers(encoder.config.bidirectional)}) are among those dropped: what is left is "
            "causal. Open lower layers (bidirectional), or drop others.",
            BellmWarning,
        )
    reason = "from the top" if by == "top" else "with the least change"
    record: dict[str, Any] = {
        "kind": "drop_layers",
        "summary": f"{number} of {num_layers} layers dropped, {reason} ({format_layers(dropped)})",
        "by": by,
        "dropped": dropped,
        "num_layers": num_layers,
        "changes": [round(change, 6) for change in changes] or None,
    }
    return smaller.with_compression(record)


def check_num_dropped(number: int, num_layers: int) -> None:
    """Raise a BellmError unless so many layers can be dropped and one stays."""
    if not 0 < number < num_layers:
        raise BellmError(f"{number} layers cannot go: the model has {num_layers}, of which 1 to {num_layers - 1} can.")


def layer_changes(
    encoder: Encoder, texts: Sequence[str], progress: Callable[[str, int, int], None] = lambda *_: None
) -> list[float]:
    """Mean of 1 - cosine between a token's states before and after each layer (Block Influence, arXiv 2403.03853)."""
    model = encoder.model
    batches = equal_length_batches(encoder.tokenize(texts).ids, default_batch_tokens(model))
    forward, found = LayerwisePass(model, batches), list[float]()
    for index in range(encoder.num_layers):
        progress("comparing states", index, encoder.num_layers)
        sums = [0.0, 0.0]

        def compare(before: Tensor, after: Tensor, sums: list[float] = sums) -> None:
            if len(before) != len(after):  # The last layer adds the branches of the parallel variant.
                before = torch.add(*before.chunk(2))
            cosines = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
            sums[0] += float((1 - cosines).sum())
            sums[1] += cosines.numel()

        forward.advance(compare)
        found.append(sums[0] / sums[1])
    return found


def _renumbered(config: EncoderConfig, kept: Sequence[int], num_layers: int) -> EncoderConfig:
    """Settings of an encoder with only some of the layers."""
    states = [state % (num_layers + 1) for state in config.layers]
    left = [-1 if state == num_layers else sum(index < state for index in kept) for state in states]
    if len(set(left)) < len(left):
        raise LayerError(
            f"layer={config.layer} pools states that are one without the layers between them: pool one of them."
        )
    return replace(
        config,
        bidirectional=tuple(number for number, index in enumerate(kept) if index in config.bidirectional),
        layer=f"{'mean:' * config.averages_layers}{','.join(map(str, left))}",
        token_prepending=sum(index < config.token_prepending for index in kept),
    )
