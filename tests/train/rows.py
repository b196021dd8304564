"""Examples of our own: sentences that share words, and so share tokens and beginnings."""

import json
from pathlib import Path

from bellm.train.dataset import Dataset
from bellm.train.examples import Example

WHO = ("A heron", "The baker", "My neighbour", "An old train", "The invoice", "A tired clerk", "Snow", "The street")
WHAT = ("waits for a fish", "comes back an hour late", "was paid twice by mistake", "rises in a warm kitchen", "sleeps")


def triplet(number: int, negatives: int = 1) -> Example:
    """One row; rows have texts of various lengths, and none in common."""
    who, what = WHO[number % len(WHO)], WHAT[number % len(WHAT)]
    ending = " in the morning" * (number % 3)
    against = tuple(f"{WHAT[(number + 1 + k) % len(WHAT)]} {k} {number}" for k in range(negatives))
    return Example(f"{who} {what}{ending}, {number}.", (f"Number {number}: {who} {what}.",), against)


def triplets(count: int, negatives: int = 1) -> list[Example]:
    """The first so many rows."""
    return [triplet(number, negatives) for number in range(count)]


def dataset(count: int, negatives: int = 1) -> Dataset:
    """They as a data set."""
    return Dataset("ours", triplets(count, negatives))


def write(path: Path, count: int) -> Path:
    """They as JSON Lines."""
    rows = [{"anchor": one.anchor, "positive": one.positives, "negative": one.negatives} for one in triplets(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
