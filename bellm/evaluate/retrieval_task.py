"""Retrieval: rank documents by cosine and score nDCG@10 with pytrec_eval, the bindings of TREC's own program.

Shapes: Q queries, N documents, K documents ranked for each query.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytrec_eval

from bellm.data import RetrievalData, read_retrieval
from bellm.evaluate.bm25 import rank_by_words
from bellm.evaluate.results import TaskResult
from bellm.evaluate.task import Task
from bellm.report.statistics import check_items
from bellm.tensors.similarity import cosine_similarity
from bellm.types import InputType, Vectors

_RANKED = 100
_SCORES = 1 << 25  # Cosines held at once.


class RetrievalTask(Task[RetrievalData]):
    """Documents and judged queries."""

    kind = "retrieval"

    def check(self, data: RetrievalData) -> None:
        """Refuse few queries."""
        check_items(len(data.queries), name=self.name)

    def load(self, folder: Path | None, *, clean: bool = False) -> RetrievalData:
        """Read the collection."""
        return read_retrieval(self.name, folder)

    def texts(self, data: RetrievalData) -> Mapping[InputType, Sequence[str]]:
        """Documents and queries."""
        return {"document": data.documents, "query": data.queries}

    def score(self, data: RetrievalData, vectors: Mapping[InputType, Vectors]) -> TaskResult:
        """Score nDCG@10 of each judged query; `extra_metrics` has recall, MRR and MAP."""
        return self._score_ranking(data, _ranked(data, vectors["query"], vectors["document"]))

    def score_words(self) -> TaskResult:
        """The same of what BM25 finds in whole texts, without vectors."""
        data = self.data
        assert data is not None
        texts = len(set(data.documents)) + len(set(data.queries))
        return replace(self._score_ranking(data, rank_by_words(data, _RANKED)), num_texts=texts)

    def _score_ranking(self, data: RetrievalData, run: Mapping[str, Mapping[str, float]]) -> TaskResult:
        relevant = {name: dict(judged) for name, judged in data.relevant.items()}
        measures = pytrec_eval.RelevanceEvaluator(relevant, {"ndcg_cut.10", "recall.10,100", "recip_rank", "map"})
        scores = measures.evaluate(run)
        top = measures.evaluate({name: dict(list(hits.items())[:10]) for name, hits in run.items()})
        judged = [name for name in data.query_ids if name in scores]
        return TaskResult(
            task=self.name,
            metric="nDCG@10",
            item_scores_N=np.array([scores[name]["ndcg_cut_10"] for name in judged]),
            extra_metrics={
                "Recall@10": _mean(scores[name]["recall_10"] for name in judged),
                "Recall@100": _mean(scores[name]["recall_100"] for name in judged),
                "MRR@10": _mean(top[name]["recip_rank"] for name in judged),
                "MAP@100": _mean(scores[name]["map"] for name in judged),
            },
        )


RETRIEVAL_TASKS = (RetrievalTask("SciFact"),)


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


def _mean(values: Iterable[float]) -> float:
    return 100 * float(np.mean(list(values)))
