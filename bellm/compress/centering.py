"""Learn what vectors of a user's texts have in common, and take it away from all vectors."""

from collections.abc import Iterable

from bellm.encoder import Encoder
from bellm.engine.tokenization import list_texts
from bellm.errors import BellmError, check_encoder
from bellm.tensors.similarity import is_constant
from bellm.tensors.vector_statistics import VectorStatistics

_FEWEST_TEXTS = 10


def center(encoder: Encoder, texts: Iterable[str], *, whitening: bool = False, progress: bool = False) -> Encoder:
    """Give an encoder that subtracts the mean vector of some texts, or also whitens; the given one stays as it is.

    Vectors of language models share a large direction, which hides in a cosine what texts differ in. The mean is part
    of the encoder: it is saved with it, and `replace(centering="none")` turns it off. It is subtracted before vectors
    are cut (`truncate_dim`) and normalized. Whitening (BERT-whitening, arXiv 2103.15316) also turns vectors to the
    principal axes of the texts and gives each variance 1, so that `truncate_dim` keeps the axes of most variance.

    Args:
        encoder: Any encoder.
        texts: Of the kind that will be embedded, and never those that the encoder is scored on.
        whitening: Whether to whiten too; it takes more different texts than a vector has numbers, better ten times.
        progress: Show a progress bar.

    Raises:
        BellmError: There are too few different texts, or all have the same vector.
    """
    check_encoder(encoder, Encoder)
    texts = list(dict.fromkeys(list_texts(texts)))
    plain = encoder.uncentered()
    fewest = plain.embedding_dim + 1 if whitening else _FEWEST_TEXTS
    if len(texts) < fewest:
        what = f"to whiten {plain.embedding_dim} numbers" if whitening else "for a mean"
        raise BellmError(f"{len(texts)} different texts are too few {what}: give at least {fewest}.")
    vectors_ND = plain.encode_with_stats(texts, progress=progress).vectors
    if is_constant(vectors_ND):
        raise BellmError("All texts have the same vector, and nothing would be left of it. Choose other settings.")
    statistics = VectorStatistics.measure(vectors_ND, texts, plain.config.uncentered_digest())
    return encoder.with_statistics(statistics, "whitening" if whitening else "mean")
