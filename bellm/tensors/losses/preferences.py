"""Losses on a language model's log-probabilities of responses: DPO, KTO, and GRL's retrieval-generation divergence.

Shapes: B prompts or queries, C candidates of each, 2 its chosen and its rejected response.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from bellm.errors import BellmError, check_choice
from bellm.tensors.losses.loss_inputs import mean_kl, upcast

Direction = Literal["paper", "reverse"]


def dpo(policy_B2: Tensor, reference_B2: Tensor, beta: float = 0.1) -> Tensor:
    """Direct preference optimization of chosen over rejected responses, relative to a reference model.

    The mean of -log sigmoid(beta (g_chosen - g_rejected)), g = policy - reference (arXiv 2305.18290, equation 7). Both
    are log-probabilities summed over a response's tokens; the larger beta, the closer the policy stays to the
    reference, which gets no gradient.

    >>> dpo(torch.zeros(1, 2), torch.zeros(1, 2))  # Policy and reference alike: log 2.
    tensor(0.6931)
    """
    chosen_B, rejected_B = _log_ratios(policy_B2, reference_B2)
    return -functional.logsigmoid(beta * (chosen_B - rejected_B)).mean()


def kto_pair(policy_B2: Tensor, reference_B2: Tensor, beta: float = 0.1) -> Tensor:
    """KTO on pairs: a logistic value of each response's log-ratio, relative to the mean log-ratio of the other kind.

    With g as in `dpo`, and z = max(0, mean of g) over the batch, the mean over all 2B responses of
    1 - sigmoid(beta (g_chosen - z_rejected)) and 1 - sigmoid(beta (z_chosen - g_rejected)): KTO (arXiv 2402.01306) in
    the form for pairs that TRL once had and ULLME has as `kto_pair`, in which each kind's reference point z is
    estimated from the other kind. As in the paper, and unlike that code, no gradient flows into z.

    >>> kto_pair(torch.zeros(1, 2), torch.zeros(1, 2))
    tensor(0.5000)
    """
    chosen_B, rejected_B = _log_ratios(policy_B2, reference_B2)
    from_chosen, from_rejected = (ratios_B.detach().mean().relu() for ratios_B in (chosen_B, rejected_B))
    good_B, bad_B = chosen_B - from_rejected, from_chosen - rejected_B
    return (1 - torch.sigmoid(beta * torch.cat([good_B, bad_B]))).mean()


def retrieval_generation_kl(
    retrieval_BC: Tensor, generation_BC: Tensor, *, temperature: float = 0.05, direction: Direction = "paper"
) -> Tensor:
    """KL divergence of a query's retrieval and generation distributions over its candidates: the third term of GRL.

    KL(P_rt || P_gen) = sum of P_rt log(P_rt / P_gen) over each query's candidates, averaged over queries (ULLME, arXiv
    2408.03402), with P_rt = softmax(retrieval / temperature) and P_gen = softmax(generation). ULLME's code has the
    other direction, KL(P_gen || P_rt), and no gradient into P_gen.

    >>> retrieval_generation_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986]]))  # Halves; 1/4 and 3/4.
    tensor(0.1438)

    Args:
        retrieval_BC: Cosines of each query with its candidates, its positives and its negatives.
        generation_BC: Mean log-probability per token of the same candidates as responses to the query.
        temperature: Divides the cosines.
        direction: The paper's, or the code's reverse.
    """
    check_choice("direction", direction, Direction)
    _check_candidates(retrieval_BC, generation_BC)
    retrieval_BC = upcast(retrieval_BC) / temperature
    return mean_kl(retrieval_BC, generation_BC) if direction == "paper" else mean_kl(generation_BC, retrieval_BC)


def _log_ratios(policy_B2: Tensor, reference_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Log-ratios of policy and reference, of the chosen and of the rejected responses."""
    _check_candidates(policy_B2, reference_B2)
    chosen_B, rejected_B = (upcast(policy_B2) - upcast(reference_B2.detach())).unbind(1)
    return chosen_B, rejected_B


def _check_candidates(left_BC: Tensor, right_BC: Tensor) -> None:
    if left_BC.shape != right_BC.shape or not len(left_BC) or left_BC.shape[1] < 2:
        came = f"{tuple(left_BC.shape)} and {tuple(right_BC.shape)}"
        raise BellmError(f"Scores of shapes {came}. Give both a row a query, of two or more candidates.")
