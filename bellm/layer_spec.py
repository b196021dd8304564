"""Layer specs: parse and format which layers are bidirectional, and which states are read.

Grammar: `none`, `all`, `last:K`, `first:K`, `every:K`, and lists of numbers and ranges such as `0-7` or
`3,5,28-29`. Layers count from 0. `every:K` takes each K-th layer: K-1, 2K-1, ...
"""

import re
from collections.abc import Callable, Sequence
from operator import index

from bellm.errors import LayerError

GRAMMAR = "none, all, last:K, first:K, every:K, or layers such as 0-7 or 3,5,28-29"

_COUNTED: dict[str, Callable[[int, int], range]] = {
    "last": lambda k, n: range(n - k, n),
    "first": lambda k, n: range(k),
    "every": lambda k, n: range(k - 1, n, k),
}


def parse_layers(spec: str | Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Sorted layer indices, without repeats, of a spec in this module's grammar or of indices.

    >>> parse_layers("last:2", 30)
    (28, 29)
    >>> parse_layers("3,5,28-29", 30)
    (3, 5, 28, 29)
    """
    if not isinstance(spec, str):
        try:
            return _within([index(layer) for layer in spec], num_layers, str(list(spec)))
        except TypeError as error:
            raise LayerError(f"Direction map {spec!r} cannot be read. Write {GRAMMAR}.") from error
    word = spec.strip().lower()
    if word in ("none", "all"):
        return tuple(range(num_layers if word == "all" else 0))
    if counted := re.fullmatch(r"(last|first|every):(\d+)", word):
        return _counted(counted[1], int(counted[2]), num_layers)
    if re.fullmatch(r"\d+(-\d+)?(\s*,\s*\d+(-\d+)?)*", word):
        return tuple(sorted({layer for part in word.split(",") for layer in _range(part, num_layers, spec)}))
    raise LayerError(f"Direction map {spec!r} cannot be read. Write {GRAMMAR}.")


def format_layers(layers: Sequence[int]) -> str:
    """Write layer indices in the grammar, as short as possible.

    >>> format_layers((3, 5, 28, 29))
    '3,5,28-29'
    """
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"


def parse_states(spec: int | str) -> tuple[tuple[int, ...], bool]:
    """Numbers of the states that a vector is read from, and whether it is their mean; otherwise they stand in a row.

    >>> parse_states(-1)
    ((-1,), False)
    >>> parse_states("mean:-1,-6")
    ((-1, -6), True)
    """
    read = re.fullmatch(r"(mean:)?(-?\d+(?:\s*,\s*-?\d+)*)", str(spec).strip())
    states = tuple(map(int, read[2].split(","))) if read else ()
    if not read or isinstance(spec, bool) or len(set(states)) < len(states) or (read[1] and len(states) == 1):
        raise LayerError(
            f"layer={spec!r} cannot be read. Write one state as -1, several side by side as -1,-6, or their mean as "
            "mean:-1,-6."
        )
    return states, bool(read[1])


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
