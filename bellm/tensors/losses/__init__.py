"""Losses as pure functions of vectors, scores and log-probabilities; `bellm.train` wraps them as objectives.

| Loss                                   | Inputs                                     | Labels                  |
|----------------------------------------|--------------------------------------------|-------------------------|
| `contrastive.info_nce`                 | (anchor, positives), (..., negatives)      | none                    |
| `contrastive.in_batch_graded`          | (text, text)                               | scores, 0 to 1          |
| `ranking.cosent`, `angle`, `angle_sum` | (text, text)                               | scores, by their order  |
| `ranking.angle_sum_of_triplets`        | (anchor, positive, negative)               | none                    |
| `nested.over_dimensions`, `espresso`   | those of the wrapped loss                  | those of it             |
| `distillation.cosine_distance`         | texts                                      | vectors of equal width  |
| `distillation.similarity_kl`           | texts                                      | vectors of any width    |
| `distillation.score_kl`, `margin_mse`  | (query, positive, negatives)               | a reranker's scores     |
| `preferences.dpo`, `kto_pair`          | log-probabilities of chosen and rejected   | those of the reference  |
| `preferences.retrieval_generation_kl`  | cosines, log-probabilities of candidates   | none                    |

`info_nce` is the usual choice for pairs and triplets, `cosent` for rated pairs, `similarity_kl` for a stronger encoder
as the teacher and `margin_mse` for a reranker.
"""
