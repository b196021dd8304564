"""Embed, compare and search the texts of files that fit in memory; results know their JSON and their words.

Functions take an encoder, or a function that loads one, which is called once everything that costs less was checked.
`column` says where tables hold the texts; `max_batch_tokens` and `progress` are those of `Encoder.encode`.
"""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Union

from bellm.errors import BellmError, SourceError
from bellm.io.formats import FORMATS
from bellm.io.rows import check_query, check_text, expand_inputs, read_texts, refuse_own_input
from bellm.io.streams import STDIN, content_suffix
from bellm.io.vectors import STDOUT, new_vector_file
from bellm.types import InputType

if TYPE_CHECKING:  # They need torch, and mistakes in files are said before it is imported.
    from bellm.encoder import Encoder
    from bellm.engine.graph_encoder import GraphEncoder
    from bellm.multiview import MultiViewEncoder
    from bellm.pool import EncoderPool

LoadEncoder = Union[
    "Encoder", "MultiViewEncoder", "GraphEncoder", Callable[[], "Encoder | MultiViewEncoder | GraphEncoder"]
]


@dataclass(frozen=True)
class EmbeddedFile:
    """A file of vectors that `embed_file` wrote."""

    rows: int
    embedding_dim: int
    output: str
    encoder: dict[str, Any]
    """Source and description of the encoder."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def __str__(self) -> str:
        speed = run_summary(self.encoder, self.rows, self.seconds)
        where = "standard output" if self.output == STDOUT else self.output
        return f"{where}: {self.rows} rows of {self.embedding_dim} dimensions, {speed}"


@dataclass(frozen=True)
class PairSimilarity:
    """Cosines of pairs of texts."""

    cosines: tuple[float, ...]
    encoder: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(f"{cosine:.4f}" for cosine in self.cosines)


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A row that a search found; only rows of a corpus have an id and a file."""

    score: float
    """Cosine with the query; of a search by vectors and words the sum of 1 / (60 + rank) over both."""
    id: str | None = None
    file: str | None = None
    row: int
    text: str | None
    """None where the corpus keeps no texts."""
    chunk: int | None = None
    """Number of a chunk in its document, from 0; `start`, `end` (characters) and `line` say where it stands there."""
    start: int | None = None
    end: int | None = None
    line: int | None = None
    vector_rank: int | None = None
    """Place among the rows by cosine, of a search by vectors and words; None where it is not near the top."""
    word_rank: int | None = None
    """Place by BM25."""

    def to_json(self) -> dict[str, Any]:
        """The fields that it has, and its text."""
        return {name: value for name, value in vars(self).items() if name == "text" or value is not None}


@dataclass(frozen=True)
class SearchResult:
    """Hits of a search, best first."""

    hits: tuple[Hit, ...]
    exact: bool
    """Whether every row was compared."""
    encoder: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """All fields, of hits those that they have."""
        return {**vars(self), "hits": [hit.to_json() for hit in self.hits]}


def embed_file(
    encoder: LoadEncoder,
    inputs: Sequence[str],
    output: str,
    *,
    column: str = "text",
    input_type: InputType = "text",
    max_batch_tokens: int | None = None,
    devices: Sequence[str] = (),
    force: bool = False,
    progress: bool = False,
) -> EmbeddedFile:
    """Write one vector for each text of the inputs to a file, whole or not at all.

    Inputs are files, folders, patterns, or `-` for standard input; the output is a .npy file of vectors, or a .jsonl or
    .parquet file of texts and vectors, replaced with `force`, or `-` for the lines of a .jsonl to standard output.
    With `devices` a process for each of them embeds.

    Raises:
        BellmError: An input cannot be read, the output cannot be written, or the encoder cannot be loaded.
    """
    files = expand_inputs(inputs)
    refuse_own_input(output, files)
    texts = read_texts(files, column)
    with new_vector_file(output, force=force) as write:
        encoder = encoder() if callable(encoder) else encoder
        from bellm.data.amr import warn_missing_graphs
        from bellm.engine.embedding import warn_degenerate
        from bellm.engine.tokenization import warn_truncated

        start = time.perf_counter()
        with on_devices(encoder, devices) as embedder:
            result = embedder.encode_with_stats(
                texts, input_type=input_type, max_batch_tokens=max_batch_tokens, progress=progress
            )
        warn_truncated(result.num_truncated, len(texts), encoder.describe()["max_tokens"])
        warn_missing_graphs(result.num_missing_graphs, len(texts))
        warn_degenerate(texts, result.vectors, encoder.dtype_name)
        seconds = round(time.perf_counter() - start, 3)
        write(texts, result.vectors)
    return EmbeddedFile(len(texts), encoder.embedding_dim, output, _describe(encoder), seconds)


def compare_texts(
    encoder: LoadEncoder,
    a: str,
    b: str,
    *,
    column: str = "text",
    max_batch_tokens: int | None = None,
    progress: bool = False,
) -> PairSimilarity:
    """Cosine of two texts, or of two files of texts row by row.

    Raises:
        BellmError: A file cannot be read, they have other numbers of texts, or one is a file and the other is not.
    """
    left, right = _read_pairs(a, b, column)
    encoder = encoder() if callable(encoder) else encoder
    vectors = encoder.encode(left + right, max_batch_tokens=max_batch_tokens, progress=progress and len(left) > 1)
    from bellm.tensors.similarity import paired_cosine_similarity

    cosines = paired_cosine_similarity(vectors[: len(left)], vectors[len(left) :])
    return PairSimilarity(tuple(cosines.tolist()), _describe(encoder))


def search_file(
    encoder: LoadEncoder,
    query: str,
    file: str,
    *,
    top: int = 10,
    column: str = "text",
    max_batch_tokens: int | None = None,
    progress: bool = False,
) -> SearchResult:
    """Find the `top` texts of a file, or of standard input (`-`), that are nearest to a query.

    The query gets the prompt's query template, the texts get its document template.

    Raises:
        BellmError: The query is no text or empty, the file cannot be read, or the encoder cannot be loaded.
    """
    check_query(query)
    texts = read_texts(file, column)
    encoder = encoder() if callable(encoder) else encoder
    documents = encoder.encode_document(texts, max_batch_tokens=max_batch_tokens, progress=progress)
    from bellm.tensors.similarity import cosine_similarity

    scores = cosine_similarity(encoder.encode_query([query]), documents)[0]
    best = (-scores).argsort(kind="stable")[:top].tolist()
    hits = (Hit(score=float(scores[index]), row=index + 1, text=texts[index]) for index in best)
    return SearchResult(tuple(hits), True, _describe(encoder))


@contextmanager
def on_devices(
    encoder: "Encoder | MultiViewEncoder | GraphEncoder", devices: Sequence[str]
) -> "Iterator[Encoder | MultiViewEncoder | GraphEncoder | EncoderPool]":
    """Give the encoder itself, or processes that embed in its place if devices are given."""
    if devices:
        from bellm.encoder import Encoder
        from bellm.pool import EncoderPool

        if not isinstance(encoder, Encoder):
            raise BellmError("Several devices take one encoder, and this is none of bellm's: leave devices out.")
        with EncoderPool(encoder, devices) as pool:
            yield pool
    else:
        yield encoder


def run_summary(encoder: dict[str, Any], rows: int, seconds: float) -> str:
    """How an encoder embedded some rows, in words."""
    opened = f"open layers {encoder['bidirectional']} of {encoder['num_layers']}, " if "num_layers" in encoder else ""
    computed = f"computed in {encoder['dtype']} " if "dtype" in encoder else ""
    return f"{opened}{computed}in {seconds:.1f} s ({rows / max(seconds, 1e-3):.0f} texts/s)"


def _describe(encoder: "Encoder | MultiViewEncoder | GraphEncoder") -> dict[str, Any]:
    return {"source": encoder.source, **encoder.describe()}


def _read_pairs(a: str, b: str, column: str) -> tuple[list[str], list[str]]:
    is_file = [_is_file(side) for side in (a, b)]
    if not any(is_file):
        return [check_text("The first text", a)], [check_text("The second text", b)]
    if not all(is_file):
        file, text = (a, b) if is_file[0] else (b, a)
        raise BellmError(f"{file} is a file, but {text!r} is not. Give two texts or two files.")
    if a == b == STDIN:
        raise BellmError("Both sides are standard input. Name a file for one of them.")
    left, right = read_texts(a, column), read_texts(b, column)
    if len(left) != len(right):
        raise BellmError(f"{a} has {len(left)} texts and {b} has {len(right)}: rows are compared one by one.")
    return left, right


def _is_file(side: str) -> bool:
    """Whether one side of a comparison names a file; what looks like a path is no text, and has to be there."""
    if side == STDIN or os.path.isfile(side):
        return True
    if os.path.isdir(side):
        raise SourceError(f"{side} is a folder. Give two texts or two files.")
    is_url = re.match(r"\w+://", side)
    is_path = side.startswith(("./", "../", "~/", "/")) or re.fullmatch(r"\S+/\S*\.[A-Za-z]\w*", side)
    if content_suffix(side) in FORMATS or (is_path and not is_url):
        raise SourceError(f"There is no file {side}. Give two texts or two files.")
    return False
