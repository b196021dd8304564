"""Approximate search and search by signs against exact search: recall@10, time for a query, time to index.

The generated corpus has the width of SmolLM2's vectors: clusters of very different sizes, with a spectrum that falls as
that of embeddings does (seed 0); its queries are drawn as its rows are. Where BELLM_DATA or ../shared/data holds
SciFact, its documents and test queries are embedded and searched as well. Recall is the share of the ten rows of exact
search that the others find; exact search is proved against numpy in tests/corpus/test_index.py.
"""

import argparse
import json
import os
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from rich.console import Console
from rich.table import Table

from bellm import Encoder
from bellm.corpus import corpus_config, manifest, shards
from bellm.corpus.corpus_config import CorpusConfig
from bellm.corpus.index import Index, build_index
from bellm.corpus.job import embed_corpus
from bellm.corpus.row_ranges import SHARD_FOLDER, SHARD_ROWS, RowRange
from bellm.engine.embedding import EncodeResult
from bellm.errors import TruncationWarning
from bellm.types import Vectors

MODEL = "smollm2"
CLUSTERS = 3000


@dataclass(frozen=True)
class Row:
    """One corpus, searched in all ways."""

    corpus: str
    rows: int
    queries: int
    index_seconds: float
    approximate_index_seconds: float
    """On top of `index_seconds`."""
    exact_ms: float
    approximate_ms: float
    recall: float
    binary_ms: float
    """By the signs of all vectors first, a bit a number, the nearest then in full."""
    binary_recall: float


class Clusters:
    """Draws vectors."""

    def __init__(self, width: int) -> None:
        self._rng = np.random.default_rng(0)
        self._scale = (np.arange(1, width + 1) ** -0.5).astype(np.float32)
        self._centres = self._normal(CLUSTERS)
        sizes = self._rng.pareto(1.2, CLUSTERS) + 0.05
        self._sizes = sizes / sizes.sum()

    def draw(self, count: int) -> Vectors:
        """Vectors of shape (count, width), each near the centre of some cluster."""
        return self._centres[self._rng.choice(CLUSTERS, count, p=self._sizes)] + 0.7 * self._normal(count)

    def _normal(self, count: int) -> Vectors:
        return self._rng.standard_normal((count, len(self._scale)), dtype=np.float32) * self._scale


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the generated corpus (200000)")
    parser.add_argument("--quick", action="store_true", help="50 000 generated rows, 500 documents")
    parser.add_argument("--json", type=Path, help="also write the table here")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    encoder = Encoder.from_pretrained(MODEL, prompt="raw", pooling="mean", max_tokens=64)
    with tempfile.TemporaryDirectory() as place:
        rows = list(measured(encoder, Path(place), 50_000 if options.quick else options.rows, options.quick))
    Console().print(table(rows))
    if options.json:
        record = {"machine": platform.processor() or platform.machine(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


def measured(encoder: Encoder, place: Path, count: int, quick: bool) -> Iterator[Row]:
    """Both corpora; the second only where its data are."""
    clusters = Clusters(encoder.embedding_dim)
    generate(place / "generated", encoder, clusters, count)
    yield measure("generated", place / "generated", clusters.draw(50))
    data = Path(os.environ.get("BELLM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "scifact"
    if data.is_dir():
        queries = embed_scifact(data, place / "scifact", encoder, 500 if quick else None)
        yield measure("SciFact", place / "scifact", queries)


def generate(out: Path, encoder: Encoder, clusters: Clusters, count: int) -> None:
    """A corpus of drawn vectors in half precision, as if the encoder had given them."""
    (out / SHARD_FOLDER).mkdir(parents=True)
    config = CorpusConfig.of(encoder, precision="float16")
    digest = corpus_config.check_corpus_config(out, config, encoder)
    written = []
    for first in range(1, count + 1, SHARD_ROWS):
        rows = list(range(first, min(first + SHARD_ROWS, count + 1)))
        row_range = RowRange("generated", first, rows, list(map(str, rows)), [""] * len(rows))
        encoded = EncodeResult(clusters.draw(len(rows)), 0, 0)
        written.append(
            shards.write_shard(
                out / SHARD_FOLDER,
                row_range,
                encoded,
                precision="float16",
                keep_text=False,
                config_digest=digest,
            )
        )
    manifest.write_manifest(out, {"source": MODEL, **encoder.describe()}, vars(config), digest, written)


def embed_scifact(data: Path, out: Path, encoder: Encoder, count: int | None) -> Vectors:
    """Embed the documents to a corpus; returns the vectors of the test queries."""
    lines = (data / "derived" / "corpus.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    file = out.with_suffix(".jsonl")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    wanted = {line.split()[0] for line in (data / "beir" / "qrels" / "test.tsv").read_text().splitlines()}
    entries = map(json.loads, (data / "beir" / "queries.jsonl").read_text(encoding="utf-8").splitlines())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        embed_corpus(encoder, [str(file)], out, source=MODEL)
        return encoder.encode_query([entry["text"] for entry in entries if entry["_id"] in wanted])


def measure(name: str, out: Path, queries: Vectors) -> Row:
    """Index a corpus in all ways and put the same queries to each."""
    index_seconds, _ = timed(lambda: build_index(out, approximate=False))
    exact_seconds, expected = timed(lambda: searched(out, queries))
    approximate_index_seconds, record = timed(lambda: build_index(out, approximate=True))
    approximate_seconds, found = timed(lambda: searched(out, queries))
    build_index(out, binary=True)
    binary_seconds, by_signs = timed(lambda: searched(out, queries))

    def recall(found: list[set[int]]) -> float:
        return sum(len(a & b) for a, b in zip(found, expected, strict=True)) / sum(map(len, expected))

    return Row(
        corpus=name,
        rows=record.rows,
        queries=len(queries),
        index_seconds=index_seconds,
        approximate_index_seconds=approximate_index_seconds,
        exact_ms=1000 * exact_seconds / len(queries),
        approximate_ms=1000 * approximate_seconds / len(queries),
        recall=recall(found),
        binary_ms=1000 * binary_seconds / len(queries),
        binary_recall=recall(by_signs),
    )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def searched(out: Path, queries: Vectors) -> list[set[int]]:
    """Rows of the ten best hits of every query."""
    index = Index.open(out)
    return [{hit.row for hit in index.search(query)} for query in queries]


def table(rows: Sequence[Row]) -> Table:
    """The rows for people."""
    grid = Table(
        *(
            "corpus",
            "rows",
            "queries",
            "indexed in",
            "approx. in",
            "exact",
            "approx.",
            "recall@10",
            "signs",
            "recall@10",
        ),
        title="Against exact search",
    )
    for row in rows:
        seconds = (f"{row.index_seconds:.1f} s", f"+ {row.approximate_index_seconds:.1f} s")
        signs = (f"{row.binary_ms:.1f} ms", f"{row.binary_recall:.3f}")
        queries = (f"{row.exact_ms:.1f} ms", f"{row.approximate_ms:.1f} ms")
        grid.add_row(row.corpus, f"{row.rows:,}", str(row.queries), *seconds, *queries, f"{row.recall:.3f}", *signs)
    return grid


if __name__ == "__main__":
    main()
