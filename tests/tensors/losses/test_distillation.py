"""Distillation against loops and sentence-transformers."""

from typing import Any

import pytest
import torch
from scipy.stats import entropy
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss
from torch.nn.functional import cosine_similarity, normalize

from bellm.errors import BellmError
from bellm.tensors.losses.distillation import cosine_distance, margin_mse, score_kl, similarity_kl

STUDENT, TEACHER = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
WIDE = torch.randn(5, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_cosine_distance_is_half_the_squared_distance_on_the_sphere() -> None:
    wanted = (normalize(STUDENT) - normalize(TEACHER)).square().sum(1).mean() / 2
    torch.testing.assert_close(cosine_distance(STUDENT, TEACHER), wanted)
    assert float(cosine_distance(STUDENT, -3 * STUDENT)) == pytest.approx(2)


def test_similarity_kl_is_scipy_s_entropy_over_the_other_texts() -> None:
    wanted = 0.0
    for row in range(5):
        others = [at for at in range(5) if at != row]
        shares = [
            (cosine_similarity(vectors[[row]], vectors[others]) / 0.2).softmax(0).numpy() for vectors in (WIDE, STUDENT)
        ]
        wanted += entropy(*shares) / 5
    assert float(similarity_kl(STUDENT, WIDE, temperature=0.2)) == pytest.approx(wanted)


def test_score_kl_and_margin_mse_equal_sentence_transformers() -> None:
    columns = [STUDENT, *torch.randn(3, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))]
    scores = torch.stack([(STUDENT * column).sum(1) for column in columns[1:]], dim=1)
    teacher = TEACHER[:, :3]
    wanted = MarginMSELoss(None).compute_loss_from_embeddings(columns, teacher)
    torch.testing.assert_close(margin_mse(scores, teacher), wanted)
    # Theirs is multiplied by the temperature's square, and warns of teachers at another scale.
    theirs = DistillKLDivLoss(None, temperature=2.0)
    theirs._checked_teacher_scale = True
    wanted = theirs.compute_loss_from_embeddings(columns, teacher) / 4
    torch.testing.assert_close(score_kl(scores, teacher, temperature=2.0), wanted)


@pytest.mark.parametrize("loss", [cosine_distance, similarity_kl, score_kl, margin_mse])
def test_only_the_student_learns_until_it_is_the_teacher(loss: Any) -> None:
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert (student.grad.norm(dim=1) > 1e-3).all()
    assert float(loss(TEACHER, TEACHER)) == pytest.approx(0, abs=1e-12)
    with torch.no_grad():
        assert loss(STUDENT - 0.01 * student.grad, TEACHER) < loss(STUDENT, TEACHER)


def test_gradient_of_score_kl_is_the_difference_of_shares() -> None:
    student = STUDENT.clone().requires_grad_()
    score_kl(student, TEACHER, temperature=0.5).backward()
    torch.testing.assert_close(student.grad, ((STUDENT / 0.5).softmax(1) - (TEACHER / 0.5).softmax(1)) / 0.5 / 5)


def test_margins_know_no_zero() -> None:
    torch.testing.assert_close(margin_mse(STUDENT + 7, TEACHER), margin_mse(STUDENT, TEACHER))


@pytest.mark.parametrize("shape", [(0, 3), (4, 1), (4, 2)])
def test_scores_that_cannot_be_compared_are_refused(shape: tuple[int, int]) -> None:
    student, teacher = torch.zeros(shape), torch.zeros(max(shape[0], 0), 3 if shape[1] == 2 else shape[1])
    for loss in (score_kl, margin_mse):
        with pytest.raises(BellmError, match="two or more candidates"):
            loss(student, teacher)


def test_vectors_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(BellmError, match=r"widths 6 and 9 have no cosine\. Use similarity_kl"):
        cosine_distance(STUDENT, WIDE)
    with pytest.raises(BellmError, match="2 student, 2 teacher"):
        similarity_kl(STUDENT[:2], WIDE[:2])
    with pytest.raises(BellmError, match="5 student, 4 teacher"):
        cosine_distance(STUDENT, TEACHER[:4])
    with pytest.raises(BellmError, match="0 student"):
        cosine_distance(STUDENT[:0], TEACHER[:0])
