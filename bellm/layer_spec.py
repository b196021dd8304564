"""The direction map: which layers look both ways, written, parsed and compared.

Grammar: `none`, `all`, `last:K`, `first:K`, `every:K`, and lists of numbers and ranges such as `0-7` or
`3,5,28-29`. Layers count from 0. `every:K` takes each K-th layer: K-1, 2K-1, ...
"""

import re
from collections.abc import Callable, Sequence

from bellm.errors import LayerError
from bellm.types import PoolingName, Variant

GRAMMAR = "none, all, last:K, first:K, every:K, or layers such as 0-7 or 3,5,28-29"

_COUNTED: dict[str, Callable[[int, int], range]] = {
    "last": lambda k, n: range(n - k, n),
    "first": lambda k, n: range(k),
    "every": lambda k, n: range(k - 1, n, k),
}


def parse_layers(spec: str | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Resolve a direction map into sorted layer numbers.

    Args:
        spec: A map in the grammar of this module, or layer numbers.
        num_layers: Number of decoder layers of the model.

    Returns:
        Sorted layer numbers without repeats; empty for a causal model.

    Raises:
        DirectionError: The map cannot be read, or names a layer that the model lacks.

    >>> parse("last:2", 30)
    (28, 29)
    >>> parse("3,5,28-29", 30)
    (3, 5, 28, 29)
    """
    if not isinstance(spec, str):
        return _within(spec, num_layers, str(list(spec)))
    word = spec.strip().lower()
    if word == "none":
        return ()
    if word == "all":
        return tuple(range(num_layers))
    if counted := re.fullmatch(r"(last|first|every):(\d+)", word):
        return _counted(counted[1], int(counted[2]), num_layers)
    if re.fullmatch(r"\d+(-\d+)?(\s*,\s*\d+(-\d+)?)*", word):
        return tuple(sorted({layer for part in word.split(",") for layer in _range(part, num_layers, spec)}))
    raise LayerError(f"Direction map {spec!r} cannot be read. Write {GRAMMAR}.")


def format_layers(layers: Sequence[int]) -> str:
    """Write resolved layers in the grammar, as short as it gets.

    >>> describe((3, 5, 28, 29))
    '3,5,28-29'
    """
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"


def no_op_reason(
    layers: Sequence[int], *, num_layers: int, variant: Variant, pooling: PoolingName, layer: int
) -> str | None:
    """Say why looking both ways cannot change the vectors, or None when it can.

    The last row of a causal mask already sees every token, so opening one layer changes only the rows before the
    last; these reach the last token through the next layer, and the last layer has none. With the sequential reading
    the vectors are then the causal model's. The parallel one is another model whichever way its layers look: it takes
    them out of the stack.

    Args:
        layers: Open layers.
        num_layers: Number of decoder layers.
        variant: How the paper is read.
        pooling: Pooling of the token states.
        layer: Which state is pooled: 0 for the embeddings, k after layer k, negative from the end.
    """
    if not layers:
        return None
    computed = layer % (num_layers + 1)
    effective = [number for number in layers if number < computed]
    if not effective:
        reason = (
            f"Layers {format_layers(layers)} are open, but the state that is pooled (layer={layer}) is taken below "
            "them: nothing changes. Open lower layers or pool a later state."
        )
    elif pooling == "last" and (effective == [computed - 1] or (variant == "parallel" and len(effective) == 1)):
        reason = (
            f"Opening only layer {effective[0]} changes nothing with last-token pooling: the last token of a causal "
            "layer already sees every token. Open more layers (last:8) or pool the mean."
        )
    else:
        return None
    return f"{reason}{_BESIDE if variant == 'parallel' else ''}"


_BESIDE = " (The vectors are not the causal model's: a layer beside the stack is no longer in it.)"


def _counted(word: str, count: int, num_layers: int) -> tuple[int, ...]:
    lowest = 1 if word == "every" else 0
    if not lowest <= count <= num_layers:
        raise LayerError(
            f"Direction map '{word}:{count}' does not fit: the model has {num_layers} layers, so K runs from "
            f"{lowest} to {num_layers}."
        )
    return tuple(_COUNTED[word](count, num_layers))


def _range(part: str, num_layers: int, spec: str) -> range:
    first, _, last = part.strip().partition("-")
    if last and int(last) < int(first):
        raise LayerError(f"Range {part.strip()!r} runs backwards. Write the lower layer first.")
    _within((int(first), int(last or first)), num_layers, spec)
    return range(int(first), int(last or first) + 1)


def _within(layers: Sequence[int], num_layers: int, spec: str) -> tuple[int, ...]:
    for layer in layers:
        if not 0 <= layer < num_layers:
            raise LayerError(
                f"Direction map {spec!r} names layer {layer}, but the model has {num_layers} layers "
                f"(0 to {num_layers - 1})."
            )
    return tuple(sorted(set(layers)))
