"""Small data sets of our own sentences, in the files of the real ones."""

from pathlib import Path

SUBJECTS = ("A heron", "The baker", "My neighbour", "An old train", "The invoice", "A tired clerk")
VERBS = ("waits at the river", "sleeps until noon", "comes back late", "counts the coins")


def write_pairs(folder: Path, split: str = "test", count: int = 40) -> None:
    """STS-Benchmark's file: pairs that share a subject, a verb, both or nothing, and are rated so."""
    (folder / "stsbenchmark").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        left, right = number % 6, (number * 5 // 3) % 6
        one, other = number % 4, (number // 3) % 4
        gold = 1.0 + 2 * (left == right) + 2 * (one == other)
        texts = f"{SUBJECTS[left]} {VERBS[one]}.\t{SUBJECTS[right]} {VERBS[other]}, {number} times."
        lines.append(f"main\tours\t2026\t{number:04}\t{gold:.3f}\t{texts}\n")
    (folder / "stsbenchmark" / f"sts-{split}.csv").write_text("".join(lines), encoding="utf-8")
