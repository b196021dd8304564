"""BM25, the row of every retrieval task that vectors have to beat: what words alone find, by the library bm25s.

Shapes: Q queries, K documents ranked for each query.
"""

from typing import Any

import bm25s

from bellm.data import RetrievalData

BM25 = "BM25"
"""Name of the row."""

BM25_SETTINGS: dict[str, Any] = {"ranking": "BM25 as in Lucene", "k1": 1.5, "b": 0.75, "stopwords": "English"}
"""What is needed to do it again."""


def rank_by_words(collection: RetrievalData, number: int) -> dict[str, dict[str, float]]:
    """The best documents of each query with their scores, best first, of whole texts (Robertson and Zaragoza 2009).

    Words are runs of two letters or digits and more, in lower case, without English stop words. So a script that puts
    no spaces between words has long ones, which seldom meet.

    Args:
        collection: Documents and queries.
        number: How many documents to rank for each query.
    """
    documents, queries = (
        bm25s.tokenize(list(texts), stopwords="en", show_progress=False)
        for texts in (collection.documents, collection.queries)
    )
    if not documents.vocab:
        return {name: {} for name in collection.query_ids}
    index = bm25s.BM25(k1=BM25_SETTINGS["k1"], b=BM25_SETTINGS["b"], method="lucene")
    index.index(documents, show_progress=False)
    hits_QK, scores_QK = index.retrieve(queries, k=min(number, len(collection.documents)), show_progress=False)
    return {
        name: {collection.document_ids[hit]: float(score) for hit, score in zip(hits, scores, strict=True)}
        for name, hits, scores in zip(collection.query_ids, hits_QK, scores_QK, strict=True)
    }
