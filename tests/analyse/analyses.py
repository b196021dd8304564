"""Analyses of planted numbers, in the shape that `compare_representations` gives."""

from itertools import combinations, product

from bellm.analyse import MEASURES, Analysis, ComparedPair, Measured

METADATA = {"permutations": 100, "half_samples": 30, "seed": 0, "sampled_texts": 300, "versions": {"bellm": "0.4.0"}}


def measured(name: str, closeness: float, chance: float = 0.2) -> Measured:
    """A measure on the way from its worst value (0) to its best (1), where chance is on the way too."""
    measure = MEASURES[name]
    worst = 1.0 if measure.worst == float("inf") else measure.worst
    at = lambda way: worst + way * (measure.best - worst)  # noqa: E731
    low, high = sorted((at(closeness - 0.05), at(min(closeness + 0.05, 1))))
    if not measure.is_paired:
        return Measured(at(closeness), low, high)
    calibrated = (closeness - chance) / (1 - chance)
    p = 0.0099 if closeness > chance else 0.4
    return Measured(at(closeness), low, high, at(chance), 0.01, p, calibrated, chance > closeness / 2 > 0.05)


def pair(a: str, b: str, closeness: float, names: tuple[str, ...] = tuple(MEASURES)) -> ComparedPair:
    return ComparedPair(a, b, {name: measured(name, closeness + at / 100) for at, name in enumerate(names)})


def of_models(*names: str) -> Analysis:
    """Models, the first two of them close, others further and further away."""
    pairs = [pair(a, b, 0.8 / (1 + at)) for at, (a, b) in enumerate(combinations(names, 2))]
    facts = {name: {"source": name, "pooling": "last"} for name in names}
    return Analysis(facts, names, names, tuple(pairs), 300, False, METADATA, 12.3)


def of_layers(name: str = "models/heron", count: int = 6) -> Analysis:
    """Layers that are the closer the nearer they are, with a break below the last."""
    layers = tuple(f"{name} layer {layer}" for layer in range(count))
    names = ("cka", "cka_debiased", "linear_regression", "rsa", "knn_jaccard", "magnitude_difference")
    pairs = [
        pair(layers[a], layers[b], (0.3 if b == count - 1 else 0.95) - 0.1 * (b - a - 1), names)
        for a, b in combinations(range(count), 2)
    ]
    return Analysis({name: {"source": name}}, layers, layers, tuple(pairs), 300, True, METADATA, 12.3)


def across_layers() -> Analysis:
    """Layers of two models, of which layer 1 of one is closest to layer 2 of the other."""
    rows, columns = (tuple(f"{name} layer {layer}" for layer in range(3)) for name in ("heron", "models/crane"))
    names = ("cka_debiased", "rsa")
    pairs = [pair(a, b, 0.8 if (a[-1], b[-1]) == ("1", "2") else 0.4, names) for a, b in product(rows, columns)]
    return Analysis({"heron": {}, "models/crane": {}}, rows, columns, tuple(pairs), 300, True, METADATA)
