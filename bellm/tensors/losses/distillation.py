"""Distillation losses on a teacher's vectors or scores; no gradient flows to the teacher.

Temperatures divide scores: 0.05 here is a scale of 20 elsewhere.

Shapes: B texts or queries, C candidates of each, D width, E the teacher's width.
"""

import torch
from torch import Tensor
from torch.nn import functional

from bellm.errors import BellmError
from bellm.tensors.losses.loss_inputs import check_candidates, check_rows, cosine_matrix, row_cosines, upcast


def cosine_distance(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Mean of 1 - cosine of student and teacher, 0 to 2; half the squared distance of the vectors at length 1.

    >>> cosine_distance(torch.eye(2), torch.tensor([[5.0, 0.0], [1.0, 0.0]]))
    tensor(0.5000)

    Raises:
        BellmError: No texts, not as many vectors, or vectors of different width (`similarity_kl` takes those).
    """
    check_rows(student=student_BD, teacher=teacher_BD)
    if student_BD.shape != teacher_BD.shape:
        widths = f"{student_BD.shape[1]} and {teacher_BD.shape[1]}"
        raise BellmError(
            f"Vectors of widths {widths} have no cosine. Use similarity_kl for a teacher of another width."
        )
    return (1 - row_cosines(student_BD, teacher_BD.detach())).mean()


def similarity_kl(student_BD: Tensor, teacher_BE: Tensor, *, temperature: float = 0.05) -> Tensor:
    """KL(teacher || student) of the softmaxes of each text's cosines with the other texts, averaged over texts.

    The teacher's width may differ: similarities within the batch are compared, not vectors, as in SEED (arXiv
    2101.04731).

    >>> student, teacher = torch.eye(3), torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    >>> similarity_kl(student, teacher, temperature=1.0)  # Halves, where two of the teacher's texts have e : 1.
    tensor(0.0740)

    Args:
        student_BD: Vectors of the student.
        teacher_BE: Vectors of the same texts.
        temperature: Divides the cosines of both.

    Raises:
        BellmError: Fewer than three texts, or not as many vectors of both.
    """
    check_rows(3, student=student_BD, teacher=teacher_BE)
    others_BB = ~torch.eye(len(student_BD), dtype=torch.bool, device=student_BD.device)
    student_BC, teacher_BC = (
        cosine_matrix(vectors, vectors)[others_BB].view(len(vectors), -1) for vectors in (student_BD, teacher_BE)
    )
    return score_kl(student_BC, teacher_BC, temperature=temperature)


def score_kl(student_BC: Tensor, teacher_BC: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of the softmaxes over each query's candidates, averaged over queries.

    How rerankers are distilled into encoders (RocketQAv2, arXiv 2110.07367). Scale cosines to the range of the
    teacher's scores first; the temperature divides both.

    >>> score_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986]]))  # Teacher 1/4 and 3/4, student halves.
    tensor(0.1308)

    Args:
        student_BC: The student's score of each candidate.
        teacher_BC: The teacher's.
        temperature: Divides all scores.

    Raises:
        BellmError: No queries, fewer than two candidates, or scores that do not match.
    """
    check_candidates(student_BC, teacher_BC)
    student_BC, teacher_BC = upcast(student_BC) / temperature, upcast(teacher_BC.detach()) / temperature
    return functional.kl_div(
        student_BC.log_softmax(1), teacher_BC.log_softmax(1), reduction="batchmean", log_target=True
    )


def margin_mse(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    """Mean squared difference of the margins by which the first candidate is ahead of each other one.

    Margin-MSE (arXiv 2010.02666, equation 1), with one negative or more. Only margins count: teacher and student may
    have different zeros, but need the same scale.

    >>> margin_mse(torch.tensor([[0.9, 0.1]]), torch.tensor([[7.0, 6.0]]))  # Margins 0.8 and 1.
    tensor(0.0400)

    Args:
        student_BC: The student's scores, the positive first.
        teacher_BC: The teacher's scores of the same candidates.

    Raises:
        BellmError: No queries, no negative, or scores that do not match.
    """
    check_candidates(student_BC, teacher_BC)
    student_BC, teacher_BC = upcast(student_BC), upcast(teacher_BC.detach())
    return functional.mse_loss(student_BC[:, :1] - student_BC[:, 1:], teacher_BC[:, :1] - teacher_BC[:, 1:])
