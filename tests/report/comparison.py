"""Two systems on the same items, compared by the functions that `evaluate` puts together."""

from bellm.report.statistics import Difference, Numbers, bootstrap_estimate, paired_difference


def compare_scores(
    item_scores_N: Numbers, others_N: Numbers, gold_N: Numbers | None = None, *, resamples: int = 1000
) -> Difference:
    """The score of items minus that of others, both on the same resampled items."""
    ours, theirs = (bootstrap_estimate(scores_N, gold_N, resamples=resamples) for scores_N in (item_scores_N, others_N))
    return paired_difference(ours, theirs)
