"""Losses on a language model's log-probabilities of responses: DPO, KTO, and GRL's retrieval-generation divergence.

Shapes: B prompts or queries, C candidates of each.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from bellm.tensors.losses.loss_inputs import check_candidates, check_choice, check_rows, upcast

PreferenceForm = Literal["sigmoid", "hinge", "ipo"]
Direction = Literal["paper", "reverse"]
Side = Literal["neither", "retrieval", "generation"]


def dpo(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    reference_chosen_B: Tensor,
    reference_rejected_B: Tensor,
    *,
    beta: float = 0.1,
    form: PreferenceForm = "sigmoid",
) -> Tensor:
    """Direct preference optimization of chosen over rejected responses, relative to a reference model.

    With h = (policy - reference) of the chosen - (policy - reference) of the rejected, the mean of

    - `sigmoid`: -log sigmoid(beta h), DPO (arXiv 2305.18290, equation 7)
    - `hinge`: max(0, 1 - beta h), as in SLiC (arXiv 2305.10425)
    - `ipo`: (h - 1 / (2 beta))^2, IPO (arXiv 2310.12036, equation 17); its authors mean responses alike in length

    >>> zero = torch.zeros(1)
    >>> dpo(zero, zero, zero, zero)  # Policy and reference alike: log 2.
    tensor(0.6931)

    Args:
        policy_chosen_B: Log-probability of each chosen response by the model that is trained, summed over its tokens.
        policy_rejected_B: Of each rejected response.
        reference_chosen_B: Of the chosen responses by the reference model; no gradient flows.
        reference_rejected_B: Of the rejected responses by it.
        beta: Scale of the log-ratios; the larger, the closer the policy stays to the reference.
        form: Function of the log-ratio.

    Raises:
        BellmError: No responses, not as many of each, or an unknown form.
    """
    check_choice("form", form, PreferenceForm)
    chosen_B, rejected_B = _log_ratios(policy_chosen_B, policy_rejected_B, reference_chosen_B, reference_rejected_B)
    ahead_B = chosen_B - rejected_B
    if form == "sigmoid":
        return -functional.logsigmoid(beta * ahead_B).mean()
    if form == "hinge":
        return (1 - beta * ahead_B).relu().mean()
    return (ahead_B - 1 / (2 * beta)).square().mean()


def kto_pair(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    reference_chosen_B: Tensor,
    reference_rejected_B: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """KTO on pairs: a logistic value of each response's log-ratio, relative to the mean log-ratio of the other kind.

    With g = policy - reference, and z = max(0, mean of g) over the batch, the mean over all 2B responses of
    1 - sigmoid(beta (g_chosen - z_rejected)) and 1 - sigmoid(beta (z_chosen - g_rejected)): KTO (arXiv 2402.01306) in
    the form for pairs that TRL once had and ULLME has as `kto_pair`, in which each kind's reference point z is
    estimated from the other kind. As in the paper, and unlike that code, no gradient flows into z.

    >>> zero = torch.zeros(1)
    >>> kto_pair(zero, zero, zero, zero)
    tensor(0.5000)

    Args:
        policy_chosen_B: Log-probability of each chosen response by the model that is trained, summed over its tokens.
        policy_rejected_B: Of each rejected response.
        reference_chosen_B: Of the chosen responses by the reference model; no gradient flows.
        reference_rejected_B: Of the rejected responses by it.
        beta: Scale of the log-ratios.

    Raises:
        BellmError: No responses, or not as many of each.
    """
    chosen_B, rejected_B = _log_ratios(policy_chosen_B, policy_rejected_B, reference_chosen_B, reference_rejected_B)
    from_chosen, from_rejected = (ratios_B.detach().mean().relu() for ratios_B in (chosen_B, rejected_B))
    good_B, bad_B = chosen_B - from_rejected, from_chosen - rejected_B
    return (1 - torch.sigmoid(beta * torch.cat([good_B, bad_B]))).mean()


def retrieval_generation_kl(
    retrieval_BC: Tensor,
    generation_BC: Tensor,
    *,
    temperature: float = 0.05,
    direction: Direction = "paper",
    detached: Side = "neither",
) -> Tensor:
    """KL divergence of a query's retrieval and generation distributions over its candidates: the third term of GRL.

    KL(P_rt || P_gen) = sum of P_rt log(P_rt / P_gen) over each query's candidates, averaged over queries (ULLME, arXiv
    2408.03402), with P_rt = softmax(retrieval / temperature) and P_gen = softmax(generation).

    ULLME's code has the other direction, KL(P_gen || P_rt), and detaches P_gen, so that only retrieval is trained:
    `direction="reverse", detached="generation"`.

    >>> retrieval_generation_kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986]]))  # Halves; 1/4 and 3/4.
    tensor(0.1438)

    Args:
        retrieval_BC: Cosines of each query with its candidates, its positives and its negatives.
        generation_BC: Mean log-probability per token of the same candidates as responses to the query.
        temperature: Divides the cosines.
        direction: The paper's, or the code's reverse.
        detached: The side into which no gradient flows.

    Raises:
        BellmError: No queries, fewer than two candidates, scores that do not match, or an unknown choice.
    """
    check_choice("direction", direction, Direction)
    check_choice("detached", detached, Side)
    check_candidates(retrieval_BC, generation_BC)
    retrieval_BC = retrieval_BC.detach() if detached == "retrieval" else retrieval_BC
    generation_BC = generation_BC.detach() if detached == "generation" else generation_BC
    found_BC = (upcast(retrieval_BC) / temperature).log_softmax(1)
    written_BC = upcast(generation_BC).log_softmax(1)
    of_BC, from_BC = (found_BC, written_BC) if direction == "paper" else (written_BC, found_BC)
    return functional.kl_div(from_BC, of_BC, reduction="batchmean", log_target=True)


def _log_ratios(*log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Log-ratios of policy and reference, of the chosen and of the rejected responses."""
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    check_rows(**dict(zip(names, log_probs, strict=True)))
    policy_chosen_B, policy_rejected_B, reference_chosen_B, reference_rejected_B = map(upcast, log_probs)
    return policy_chosen_B - reference_chosen_B.detach(), policy_rejected_B - reference_rejected_B.detach()
