"""Search a corpus: its vectors in a LanceDB table, compared one by one, by signs first, or by an approximate index.

The table lies in the corpus folder, in the half precision of the shards where they have it, with ids and texts. Every
version of it stays readable; `index.json` names the one that is complete, so that a search never sees half an index.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa

from bellm.config import setting_names
from bellm.corpus import manifest, shards
from bellm.corpus.corpus_config import read_encoder_ref
from bellm.corpus.job import lock_corpus
from bellm.corpus.manifest import Manifest
from bellm.errors import BellmError, CorpusWarning, SourceError, warn
from bellm.io import atomic
from bellm.io.rows import TextPlace, check_query
from bellm.progress import progress_bar
from bellm.tensors.similarity import cosine_similarity, normalize_rows
from bellm.text_files import Hit, SearchResult
from bellm.types import Embedder, Vectors

FOLDER = "index"
RECORD_FILE = "index.json"

EXACT_ROWS = 1_000_000
"""Most rows that are compared one by one unless one asks for more: about a second for a query."""

_TABLE = "vectors"
_SHARDS_AT_ONCE = 128  # What a kill costs at most; every commit makes the table's list of files longer.
_PROBES, _REFINED = 40, 4  # Partitions that are searched, and the multiple of hits that is compared in full.
_RESCORED = 64  # The multiple of hits that is compared in full after a search by signs.
_FUSED = 10  # The multiple of hits that each of two rankings gives to the fusion, at least 100.
_RANK_OFFSET = 60  # Of reciprocal rank fusion, as published.
_OLD = timedelta(hours=1)  # Longer than any search, which reads the version that it began with.


@dataclass(frozen=True, kw_only=True)
class IndexRecord:
    """Record of a complete index: the version of its table, and the digest of the shards that it was made of."""

    version: int
    rows: int
    is_approximate: bool
    """Whether search uses the approximate index unless told otherwise."""
    shards: str
    is_binary: bool = False
    """Whether search compares the signs of all rows, and then the nearest in full, unless told otherwise."""
    has_words: bool = False
    """Whether texts are indexed by their words."""

    @property
    def is_exact(self) -> bool:
        """Whether search compares every row in full unless told otherwise."""
        return not (self.is_approximate or self.is_binary)


@dataclass(frozen=True)
class Index:
    """A corpus that can be searched; `build_index` makes it."""

    record: IndexRecord
    _table: Any

    @classmethod
    def open(cls, out: str | Path, encoder: Embedder | None = None) -> "Index":
        """Open the index of a complete corpus; `encoder`, if given, must be that of the corpus.

        Raises:
            SourceError: There is no corpus or no index, or it cannot be read.
            FingerprintError: The encoder gives other vectors than the corpus holds.

        Warns:
            CorpusWarning: The corpus has grown since.
        """
        out = Path(out)
        complete = manifest.read_manifest(out)
        try:
            record = IndexRecord(**json.loads((out / FOLDER / RECORD_FILE).read_bytes()))
        except FileNotFoundError as error:
            raise SourceError(f"{out} has no index yet: bellm index {out}") from error
        except (OSError, TypeError, ValueError) as error:
            raise SourceError(
                f"{out / FOLDER / RECORD_FILE} cannot be read: {error}. Run: bellm index {out}"
            ) from error
        with _store(out):
            table = lancedb.connect(out / FOLDER).open_table(_TABLE)
            table.checkout(record.version)
        if record.shards != _digest(_keys(out, complete)):
            message = f"{out} has changed since it was indexed; the index is searched as it was. Run: bellm index {out}"
            warn(message, CorpusWarning)
        if encoder is not None:
            read_encoder_ref(out).check(encoder, str(encoder.describe().get("name", "This encoder")))
        return cls(record, table)

    def search(self, query: Vectors, top: int = 10, *, exact: bool = False, where: str | None = None) -> list[Hit]:
        """The rows nearest to one query vector (embedding_dim,), best first.

        Args:
            query: Vector of the query.
            top: Number of hits.
            exact: Compare every row.
            where: Which rows count, in SQL over `id`, `file`, `row` and `text`.
        """
        if type(top) is not int or top < 1:
            raise BellmError(f"top={top!r} is no number of hits: give 1 or more.")
        width = self._table.schema.field("vector").type.list_size
        if query.shape != (width,):
            raise BellmError(f"The query has {query.size} numbers, and the corpus has vectors of {width}.")
        if not np.isfinite(query).all():
            raise BellmError("The vector of the query is not finite. Load the model with dtype float32.")
        unit = normalize_rows(query[None])
        # Distances in half precision could swap neighbours: a few more are fetched and put in order here.
        ask = self._table.search(unit[0], vector_column_name="vector").distance_type("cosine").limit(2 * top)
        if self.record.is_binary and not exact:
            ask = self._table.search(_signs(unit)[0], vector_column_name="code").distance_type("hamming")
            ask = ask.limit(_RESCORED * top).bypass_vector_index()
        elif self.record.is_approximate and not exact:
            ask = ask.nprobes(_PROBES).refine_factor(_REFINED)
        else:
            ask = ask.bypass_vector_index()
        nearest = _rows(ask, [*(name for name in self._table.schema.names if name != "code"), "_distance"], where)
        scores = cosine_similarity(unit, shards.shard_vectors(nearest))[0]
        rows = nearest.drop_columns(["shard", "vector", "_distance"]).to_pylist()
        best = (-scores).argsort(kind="stable")[:top].tolist()
        return [Hit(score=float(scores[index]), **{"text": None} | rows[index]) for index in best]

    def search_words(self, text: str, top: int = 10, *, where: str | None = None) -> list[Hit]:
        """The rows whose words are those of a text, best first by BM25; rows without any of them are no hits.

        Raises:
            BellmError: The corpus keeps no texts, or was indexed without their words.
        """
        if not self.record.has_words:
            raise BellmError(
                "This corpus is not indexed by words. Embed it with its texts (bellm embed --keep-text), and index it "
                "again."
            )
        ask = self._table.search(text, query_type="fts").limit(top)
        names = [name for name in self._table.schema.names if name not in ("shard", "vector", "code")]
        found = _rows(ask, [*names, "_score"], where).to_pylist()
        found.sort(key=lambda row: (-row["_score"], row["file"], row["row"]))
        return [Hit(score=float(row.pop("_score")), **row) for row in found]

    def search_both(
        self, query: Vectors, text: str, top: int = 10, *, exact: bool = False, where: str | None = None
    ) -> list[Hit]:
        """The best rows by vector and by words together: reciprocal rank fusion (Cormack et al. 2009, k = 60)."""
        number = max(_FUSED * top, 100)
        rankings = [self.search(query, number, exact=exact, where=where), self.search_words(text, number, where=where)]
        ranks = [{(hit.file, hit.row): rank for rank, hit in enumerate(hits, 1)} for hits in rankings]
        known = {(hit.file, hit.row): hit for hits in rankings for hit in hits}
        fused = [
            replace(
                hit,
                score=sum(1 / (_RANK_OFFSET + places[key]) for places in ranks if key in places),
                vector_rank=ranks[0].get(key),
                word_rank=ranks[1].get(key),
            )
            for key, hit in known.items()
        ]
        return sorted(fused, key=lambda hit: -hit.score)[:top]


def _rows(ask: Any, columns: list[str], where: str | None) -> Any:
    """What a query of LanceDB finds."""
    try:
        return (ask.where(where, prefilter=True) if where else ask).select(columns).to_arrow()
    except (OSError, RuntimeError, ValueError) as error:
        if not where:
            raise
        reason = str(error).splitlines()[0].partition(", /")[0][:200]
        raise BellmError(f"where={where!r} is no condition on id, file, row or text in SQL: {reason}") from error


def search_corpus(
    query: str,
    corpus: str | Path,
    *,
    top: int = 10,
    exact: bool = False,
    hybrid: bool = False,
    where: str | None = None,
    best: bool = False,
    source: str | None = None,
    **loading: Any,
) -> SearchResult:
    """Find the rows of an indexed corpus that are nearest to a query, with the encoder that embedded it.

    Args:
        query: A text that is not empty; it gets the prompt's query template.
        corpus: A complete corpus folder with an index.
        top: Number of hits.
        exact: Compare every row, however many there are.
        hybrid: Rank by the words of the texts too, and fuse both rankings.
        where: Which rows count, in SQL over `id`, `file`, `row` and `text`.
        best: Of each document of a corpus in chunks only the best chunk.
        source: Where the encoder is now, if not where it was when it embedded the corpus.
        loading: Options of `Encoder.from_pretrained` that leave the vectors alone.

    Raises:
        BellmError: There is no corpus or no index, an option belongs to the corpus, or the encoder is another.
    """
    check_query(query)
    if wrong := [name for name in loading if name in ("dtype", "config", *setting_names())]:
        flag = wrong[0].replace("_", "-")
        raise BellmError(f"{wrong[0]} (--{flag}) was chosen when {corpus} was embedded: leave it out, or embed anew.")
    index = Index.open(corpus)
    encoder_ref = read_encoder_ref(corpus, source)
    encoder = encoder_ref.load(**loading)
    vector = encoder.encode_query([query])[0]

    def find(number: int) -> list[Hit]:
        if hybrid:
            return index.search_both(vector, query, number, exact=exact, where=where)
        return index.search(vector, number, exact=exact, where=where)

    hits = _best_of_each(find, top) if best else find(top)
    is_exact = exact or index.record.is_exact
    return SearchResult(tuple(hits), is_exact, {"source": encoder_ref.source, **encoder.describe()})


def _best_of_each(find: Callable[[int], list[Hit]], top: int) -> list[Hit]:
    """The best hit of each of `top` documents, from as many hits as that takes."""
    number = top
    while True:
        hits, firsts = find(number), dict[str | None, Hit]()
        for hit in hits:
            firsts.setdefault(hit.id, hit)
        if len(firsts) >= top or len(hits) < number:
            return list(firsts.values())[:top]
        number *= 4


def build_index(
    out: str | Path, *, approximate: bool | None = None, binary: bool = False, progress: bool = False
) -> IndexRecord:
    """Make a complete corpus searchable; for one that has grown since, only what is new is added.

    It gets an approximate index where it has more than `EXACT_ROWS` rows, unless `approximate` decides. With `binary`
    the signs of all numbers stand beside each vector, a bit each, after a fixed random rotation: a search compares
    those of all rows (Hamming distance), and the nearest 64 times as many as it shows in full.

    Raises:
        SourceError: There is no complete corpus, a shard is damaged, or the disk refuses. The index stays as it was.
    """
    if binary and approximate:
        raise BellmError("An index by signs compares every row: approximate=True does not go with binary=True.")
    out = Path(out)
    complete = manifest.read_manifest(out)
    with lock_corpus(out), _store(out):
        keys = _keys(out, complete)
        table = _table(out, complete, binary)
        batches = table.search().select(["shard"]).to_batches()
        had = {key for batch in batches for key in batch.column("shard").unique().to_pylist()}
        if gone := had - keys.keys():
            table.delete(f"shard IN ({', '.join(map(repr, sorted(gone)))})")
        missing = [key for key in keys if key not in had]
        with progress_bar(len(missing), unit="shard", shown=progress) as done:
            for start in range(0, len(missing), _SHARDS_AT_ONCE):
                some = {key: keys[key] for key in missing[start : start + _SHARDS_AT_ONCE]}
                table.add(pa.RecordBatchReader.from_batches(table.schema, _batches(some, table.schema)))
                done(len(some))
        rows = table.count_rows()
        is_approximate = rows > EXACT_ROWS and not binary if approximate is None else approximate
        _approximate(table, is_approximate)
        has_words = _index_words(table)
        record = IndexRecord(
            version=table.version,
            rows=rows,
            is_approximate=is_approximate,
            shards=_digest(keys),
            is_binary=binary,
            has_words=has_words,
        )
        atomic.write_json(out / FOLDER / RECORD_FILE, vars(record))
        # Remove versions that no search reads any more, and what killed processes left.
        table.optimize(cleanup_older_than=_OLD, delete_unverified=True)
        for path in (out / FOLDER).rglob(".tmp*"):
            path.unlink()
    return record


def _table(out: Path, complete: Manifest, binary: bool) -> Any:
    """The table that is there, or an empty one."""
    store = lancedb.connect(out / FOLDER)
    schema = _schema(complete, binary)
    if _TABLE not in store.list_tables().tables:
        return store.create_table(_TABLE, schema=schema)
    table = store.open_table(_TABLE)
    return table if table.schema == schema else store.create_table(_TABLE, schema=schema, mode="overwrite")


def _schema(complete: Manifest, binary: bool) -> Any:
    # The steps of int8 are whole numbers, exact in half precision, and their scale does not matter to a cosine.
    number = pa.float32() if complete.config["precision"] == "float32" else pa.float16()
    fields = {"shard": pa.string(), "id": pa.string(), "file": pa.string(), "row": pa.int64()}
    fields |= {"vector": pa.list_(number, complete.embedding_dim)}
    fields |= {"code": pa.list_(pa.uint8(), -(-complete.embedding_dim // 8))} if binary else {}
    fields |= dict.fromkeys(TextPlace._fields, pa.int64()) if complete.config["chunk"] else {}
    return pa.schema(fields | ({"text": pa.string()} if complete.config["keep_text"] else {}))


def _batches(paths: dict[str, Path], schema: Any) -> Iterator[Any]:
    for key, path in paths.items():
        rows = shards.read_shard(path)
        rows = rows.append_column("shard", pa.repeat(key, len(rows)))
        if "code" in schema.names:
            codes = _signs(shards.shard_vectors(rows))
            kind = schema.field("code").type
            rows = rows.append_column("code", pa.FixedSizeListArray.from_arrays(pa.array(codes.ravel()), type=kind))
        yield from rows.select(schema.names).cast(schema).to_batches()


def _signs(vectors: Vectors) -> Any:
    """A bit for each number of the turned vectors, whether it is above 0, eight to a byte."""
    return np.packbits(vectors @ _rotation(vectors.shape[1]) > 0, axis=1)


@cache
def _rotation(width: int) -> Vectors:
    """A fixed random rotation: it spreads what a few numbers tell over all bits (RaBitQ, arXiv 2405.12497)."""
    axes, triangle = np.linalg.qr(np.random.default_rng(0).standard_normal((width, width)))
    return np.asarray(axes * np.sign(np.diag(triangle)), dtype=np.float32)  # Of the two signs of an axis one.


def _keys(out: Path, complete: Manifest) -> dict[str, Path]:
    """The shards of a corpus, by what tells the rows and the encoder of each from any other's."""
    paths = {}
    for path in manifest.shard_paths(out, complete):
        shard = shards.read_shard_info(path)
        paths[_digest([shard.name, shard.rows_digest, shard.config_digest])[:32]] = path
    return paths


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def _approximate(table: Any, wanted: bool) -> None:
    """Make, bring up to date or drop the approximate index."""
    names = [index.name for index in table.list_indices() if index.columns == ["vector"]]
    if wanted and not names:
        table.create_index("vector", config=lancedb.index.IvfSq(distance_type="cosine"))
    for name in [] if wanted else names:
        table.drop_index(name)
    table.optimize()


def _index_words(table: Any) -> bool:
    """Index the texts by their words, if there are any; those that are indexed already only where they are new."""
    if "text" not in table.schema.names or not table.count_rows():
        return False
    if not any(index.columns == ["text"] for index in table.list_indices()):
        table.create_index("text", config=lancedb.index.FTS(language="English", stem=True, remove_stop_words=True))
    table.optimize()
    return True


@contextmanager
def _store(out: Path) -> Iterator[None]:
    """Put what LanceDB raises in one line."""
    try:
        yield
    except BellmError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise SourceError(f"{out / FOLDER} fails: {str(error).splitlines()[0]}. Run: bellm index {out}") from error
