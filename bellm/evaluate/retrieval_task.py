"""Retrieval: documents ranked by cosine, scored by TREC's own program through pytrec_eval.

Shapes: Q queries, N documents, K documents ranked for each query.
"""

from collections.abc import Iterable

import numpy as np

from bellm.data.retrieval import RetrievalData
from bellm.errors import SourceError
from bellm.evaluate.evaluated_model import EvaluatedModel
from bellm.evaluate.results import TaskResult
from bellm.tensors.similarity import cosine_similarity
from bellm.types import Vectors

_RANKED = 100
_SCORES = 1 << 25  # Cosines held at once.


def score_retrieval(model: EvaluatedModel, collection: RetrievalData) -> TaskResult:
    """nDCG@10 of each judged query, with `also` recall, mean reciprocal rank and mean average precision.

    Raises:
        SourceError: pytrec_eval is not installed.
    """
    documents_ND = model.vectors(collection.documents, "document")
    queries_QD = model.vectors(collection.queries, "query")
    run = _ranked(collection, queries_QD, documents_ND)
    relevant = {name: dict(judged) for name, judged in collection.relevant.items()}
    found = _scores(relevant, run)
    top = _scores(relevant, {name: dict(list(hits.items())[:10]) for name, hits in run.items()})
    judged = [name for name in collection.query_ids if name in found]
    extra_metrics = {
        "Recall@10": _mean(found[name]["recall_10"] for name in judged),
        "Recall@100": _mean(found[name]["recall_100"] for name in judged),
        "MRR@10": _mean(top[name]["recip_rank"] for name in judged),
        "MAP@100": _mean(found[name]["map"] for name in judged),
    }
    return TaskResult(
        task=collection.name,
        metric="nDCG@10",
        item_scores_N=np.array([found[name]["ndcg_cut_10"] for name in judged]),
        num_texts=len(set(collection.documents)) + len(set(collection.queries)),
        num_truncated=model.num_truncated(collection.documents, "document")
        + model.num_truncated(collection.queries, "query"),
        extra_metrics=extra_metrics,
    )


def _ranked(collection: RetrievalData, queries_QD: Vectors, documents_ND: Vectors) -> dict[str, dict[str, float]]:
    """The nearest documents of each query with their cosines, nearest first."""
    run: dict[str, dict[str, float]] = {}
    step = max(1, _SCORES // max(1, len(documents_ND)))
    for start in range(0, len(queries_QD), step):
        scores_QN = cosine_similarity(queries_QD[start : start + step], documents_ND)
        best_QK = np.argsort(-scores_QN, axis=1, kind="stable")[:, :_RANKED]
        for row, name in enumerate(collection.query_ids[start : start + step]):
            run[name] = {collection.document_ids[hit]: float(scores_QN[row, hit]) for hit in best_QK[row]}
    return run


def _scores(relevant: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    try:
        import pytrec_eval
    except ImportError as error:
        raise SourceError("Retrieval is scored by pytrec_eval: pip install 'bellm[evaluate]'.") from error
    measures = {"ndcg_cut.10", "recall.10,100", "recip_rank", "map"}
    found: dict[str, dict[str, float]] = pytrec_eval.RelevanceEvaluator(relevant, measures).evaluate(run)
    return found


def _mean(values: Iterable[float]) -> float:
    return 100 * float(np.mean(list(values)))
