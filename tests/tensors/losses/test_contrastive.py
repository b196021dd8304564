"""Losses over a batch against loops in float64, closed forms, scipy and sentence-transformers."""

from math import exp, log

import pytest
import torch
from scipy.stats import entropy
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from bellm.errors import BellmError
from bellm.tensors.losses.contrastive import in_batch_graded, info_nce, similarity_kl

ANCHORS, POSITIVES, NEGATIVES = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WIDE = torch.randn(5, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
OWNERS = torch.tensor([2, 0, 1, 1, 0])  # Five positives of three anchors.


def written_out(targets: dict[int, int], allowed: dict[int, set[int]], scores: Tensor) -> Tensor:
    """Mean of -log softmax over rows with one target each, the denominator being the target and the allowed."""
    losses = [
        -scores[row, target] + torch.stack([scores[row, at] for at in allowed[row] | {target}]).logsumexp(0)
        for row, target in targets.items()
    ]
    return torch.stack(losses).mean()


def scores_of(left: Tensor, right: Tensor, temperature: float = 0.05) -> Tensor:
    return cosine_similarity(left[:, None], right[None], dim=2) / temperature


def test_hand_computed() -> None:
    # Cosines 1 and 0.6 with the positive and the negative, at temperature 0.4.
    anchor, negative = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert float(info_nce(anchor, 7 * anchor, negative, temperature=0.4)) == pytest.approx(log(1 + exp(-1.0)))


@pytest.mark.parametrize("temperature", [0.05, 0.7])
@pytest.mark.parametrize("columns", [[ANCHORS, POSITIVES], [ANCHORS, POSITIVES, NEGATIVES]], ids=["pairs", "triplets"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_sentence_transformers(columns: list[Tensor], temperature: float, symmetric: bool) -> None:
    directions = ("query_to_doc", "doc_to_query") if symmetric else ("query_to_doc",)
    theirs = MultipleNegativesRankingLoss(
        None, scale=1 / temperature, directions=directions, partition_mode="per_direction"
    )
    wanted = theirs.compute_loss_from_embeddings(columns, None)
    torch.testing.assert_close(info_nce(*columns, temperature=temperature, symmetric=symmetric), wanted)


def test_other_positives_of_an_anchor_are_not_its_negatives() -> None:
    scores = scores_of(ANCHORS[:3], torch.cat([POSITIVES, NEGATIVES]))
    own = {0: {1, 4}, 1: {2, 3}, 2: {0}}
    allowed = {row: set(range(10)) - own[row] for row in own}
    means = [torch.stack([written_out({row: at}, allowed, scores) for at in own[row]]).mean() for row in own]
    found = info_nce(ANCHORS[:3], POSITIVES, NEGATIVES, owners_P=OWNERS)
    torch.testing.assert_close(found, torch.stack(means).mean())


def test_symmetric_adds_each_positive_against_all_anchors() -> None:
    scores = scores_of(POSITIVES, ANCHORS[:3])
    everyone = {at: {0, 1, 2} for at in range(5)}
    single = [written_out({at: int(owner)}, everyone, scores) for at, owner in enumerate(OWNERS)]
    backwards = torch.stack([(single[1] + single[4]) / 2, (single[2] + single[3]) / 2, single[0]]).mean()
    forwards = info_nce(ANCHORS[:3], POSITIVES, NEGATIVES, owners_P=OWNERS)
    found = info_nce(ANCHORS[:3], POSITIVES, NEGATIVES, owners_P=OWNERS, symmetric=True)
    torch.testing.assert_close(found, (forwards + backwards) / 2)


def test_ignored_candidates_leave_the_denominator() -> None:
    ignored = torch.rand(5, 10, generator=torch.Generator().manual_seed(1)) < 0.4
    ignored[:, :5].fill_diagonal_(True)  # Its own positive is never left out.
    scores = scores_of(ANCHORS, torch.cat([POSITIVES, NEGATIVES]))
    allowed = {row: set((~ignored[row]).nonzero().flatten().tolist()) for row in range(5)}
    wanted = written_out({row: row for row in range(5)}, allowed, scores)
    torch.testing.assert_close(info_nce(ANCHORS, POSITIVES, NEGATIVES, ignored_BC=ignored), wanted)
    back_allowed = {at: set((~ignored[:, at]).nonzero().flatten().tolist()) for at in range(5)}
    back = written_out({row: row for row in range(5)}, back_allowed, scores[:, :5].T)
    both = info_nce(ANCHORS, POSITIVES, NEGATIVES, ignored_BC=ignored, symmetric=True)
    torch.testing.assert_close(both, (wanted + back) / 2)


@pytest.mark.parametrize("symmetric", [False, True])
def test_nothing_to_compare_is_no_loss_and_a_finite_gradient(symmetric: bool) -> None:
    everything = torch.ones(5, 10, dtype=torch.bool)
    anchors = ANCHORS.clone().requires_grad_()
    loss = info_nce(anchors, POSITIVES, NEGATIVES, ignored_BC=everything, symmetric=symmetric)
    loss.backward()
    assert loss == 0
    assert anchors.grad is not None
    assert (anchors.grad == 0).all()
    assert info_nce(ANCHORS[:1], POSITIVES[:1], symmetric=symmetric) == 0


def test_gradient_is_the_closed_form() -> None:
    anchors = ANCHORS.clone().requires_grad_()
    info_nce(anchors, POSITIVES, NEGATIVES, temperature=0.3).backward()
    unit, candidates = normalize(ANCHORS, dim=1), normalize(torch.cat([POSITIVES, NEGATIVES]), dim=1)
    cosines = unit @ candidates.T
    pull = (cosines / 0.3).softmax(1) - torch.eye(5, 10, dtype=torch.float64)
    # d cos / d anchor = (candidate - cos * unit) / length.
    wanted = (pull @ candidates - (pull * cosines).sum(1, keepdim=True) * unit) / ANCHORS.norm(dim=1, keepdim=True)
    torch.testing.assert_close(anchors.grad, wanted / 0.3 / 5)


def test_graded_labels_are_those_of_the_released_code_where_these_are_zero_or_one() -> None:
    labels = torch.tensor([1, 0, 1, 1, 0])
    texts = torch.stack([ANCHORS, POSITIVES], dim=1).flatten(0, 1)  # As there: left, right, left, right, ...
    scores = scores_of(texts, texts)
    allowed = {row: set(range(10)) - {row} for row in range(10)}
    rows = {row: row ^ 1 for row in range(10) if labels[row // 2]}
    wanted = written_out(rows, allowed, scores) * len(rows) / 10
    torch.testing.assert_close(in_batch_graded(ANCHORS, POSITIVES, labels), wanted)


def test_graded_labels_are_neither_cut_to_zero_nor_multiply_rows() -> None:
    graded = in_batch_graded(ANCHORS[:4], POSITIVES[:4], torch.tensor([0.0, 1.0, 0.7, 5.0]))
    whole = in_batch_graded(ANCHORS[:4], POSITIVES[:4], torch.tensor([0, 1, 1, 1]))
    assert graded == whole
    for label, is_positive in [(0.0, False), (0.49, False), (0.5, True), (0.7, True), (1.0, True), (5.0, True)]:
        left, right = ANCHORS[:2].clone().requires_grad_(), POSITIVES[:2]
        loss = in_batch_graded(left, right, torch.tensor([label, 0.0]))
        loss.backward()
        assert (loss > 0) == is_positive
        assert left.grad is not None
        assert left.grad.any() == is_positive


def test_one_pair_alone_is_certain() -> None:
    assert in_batch_graded(ANCHORS[:1], POSITIVES[:1], torch.ones(1)) == 0


def test_similarity_kl_is_scipy_s_entropy_over_the_other_texts() -> None:
    wanted = 0.0
    for row in range(5):
        others = [at for at in range(5) if at != row]
        shares = [
            (cosine_similarity(vectors[[row]], vectors[others]) / 0.2).softmax(0).numpy() for vectors in (WIDE, ANCHORS)
        ]
        wanted += entropy(*shares) / 5
    assert float(similarity_kl(ANCHORS, WIDE, temperature=0.2)) == pytest.approx(wanted)


def test_only_the_student_learns_until_it_is_the_teacher() -> None:
    student, teacher = ANCHORS.clone().requires_grad_(), POSITIVES.clone().requires_grad_()
    similarity_kl(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert (student.grad.norm(dim=1) > 1e-3).all()
    assert float(similarity_kl(POSITIVES, POSITIVES)) == pytest.approx(0, abs=1e-12)
    with torch.no_grad():
        assert similarity_kl(ANCHORS - 0.01 * student.grad, POSITIVES) < similarity_kl(ANCHORS, POSITIVES)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(BellmError, match="5 anchors, 4 positives"):
        info_nce(ANCHORS, POSITIVES[:4])
    with pytest.raises(BellmError, match="0 anchors"):
        info_nce(ANCHORS[:0], POSITIVES[:0])
    with pytest.raises(BellmError, match="5 positives, 3 owners"):
        info_nce(ANCHORS, POSITIVES, owners_P=OWNERS[:3])
    for owners in ([0, 0, 1, 1, 1], [0, 1, 2, 3, 3], [-1, 0, 1, 2, 2]):
        with pytest.raises(BellmError, match="Each anchor needs a positive"):
            info_nce(ANCHORS[:3], POSITIVES, owners_P=torch.tensor(owners))
    with pytest.raises(BellmError, match="5 left, 5 right, 4 labels"):
        in_batch_graded(ANCHORS, POSITIVES, torch.ones(4))
    with pytest.raises(BellmError, match="0 left"):
        in_batch_graded(ANCHORS[:0], POSITIVES[:0], torch.ones(0))
    with pytest.raises(BellmError, match="2 student, 2 teacher"):
        similarity_kl(ANCHORS[:2], WIDE[:2])
    with pytest.raises(BellmError, match="5 student, 4 teacher"):
        similarity_kl(ANCHORS, WIDE[:4])
