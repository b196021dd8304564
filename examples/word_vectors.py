"""The average of a text's word vectors on the STS tasks: a baseline, and how anything that embeds is evaluated.

Run it with `python examples/word_vectors.py --vectors glove.6B.50d.txt --data FOLDER -o report.html`; needs
pip install 'bellm[evaluate]'. The file has a word and its numbers on each line, as GloVe's files do.
"""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console

from bellm.evaluate import EvaluatedModel, evaluate, score_table, write_report_page
from bellm.types import Vectors

WORD = re.compile(r"\w+(?:'\w+)?|[^\w\s]")


class WordAverage:
    """A text is the mean of the vectors of its words; words without a vector are left out."""

    def __init__(self, vectors: Mapping[str, Vectors], width: int) -> None:
        self._vectors = vectors
        self._nothing = np.zeros(width, dtype=np.float32)

    def encode(self, texts: list[str]) -> Vectors:
        """All that bellm asks of an encoder."""
        return np.stack([self._mean(WORD.findall(text.lower())) for text in texts])

    def _mean(self, words: list[str]) -> Vectors:
        known = [self._vectors[word] for word in words if word in self._vectors]
        return np.mean(known, axis=0, dtype=np.float32) if known else self._nothing


def main() -> None:
    """Read, evaluate, show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=Path, required=True, help="file of words and their numbers")
    parser.add_argument("--data", type=Path, help="folder of data sets (BELLM_DATA, else the Hub)")
    parser.add_argument("-o", "--output", type=Path, default=Path("report.html"), help="page (report.html)")
    options = parser.parse_args()
    vectors = read(options.vectors)
    width = len(next(iter(vectors.values())))
    report = evaluate(
        [EvaluatedModel.of(WordAverage(vectors, width), options.vectors.stem)], ["sts"], data=options.data
    )
    write_report_page(report, options.output)
    Console().print(score_table(report))


def read(file: Path) -> dict[str, Vectors]:
    """Words and their vectors."""
    with file.open(encoding="utf-8") as lines:
        rows = (line.rstrip().split(" ") for line in lines)
        return {word: np.array(numbers, dtype=np.float32) for word, *numbers in rows}


if __name__ == "__main__":
    main()
