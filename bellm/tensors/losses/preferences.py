"""Losses on what a language model would write: likelihood, preference, and agreement with retrieval.

Log-probabilities are aligned with the tokens: number t is that of token t after tokens 0 to t - 1. The first token has
none, and a response never begins there.

Shapes: B sequences or queries, L tokens, N = B (L - 1) predictions, V vocabulary, C candidates.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from bellm.errors import BellmError
from bellm.tensors.losses.cosines import upcast
from bellm.tensors.losses.validation import check_choice, check_rows

PreferenceForm = Literal["sigmoid", "hinge", "ipo"]
Direction = Literal["paper", "reverse"]
Side = Literal["neither", "retrieval", "generation"]


def token_log_probs(logits_BLV: Tensor, ids_BL: Tensor) -> Tensor:
    """Log-probability of each token given those before it, shape (B, L); 0 for the first, which nothing predicts.

    >>> logits = torch.tensor([[[0.0, 0.0], [0.0, 1.0986], [9.0, 9.0]]])
    >>> token_log_probs(logits, torch.tensor([[0, 1, 1]]))  # log 1/2, then log 3/4.
    tensor([[ 0.0000, -0.6931, -0.2877]])
    """
    next_BL = ids_BL[:, 1:]
    losses_N = functional.cross_entropy(upcast(logits_BLV[:, :-1]).flatten(0, 1), next_BL.flatten(), reduction="none")
    return functional.pad(-losses_N.view_as(next_BL), (1, 0))


def response_sums(log_probs_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Log-probability of each response, shape (B,): for `dpo` and `kto_pair`.

    Args:
        log_probs_BL: From `token_log_probs`.
        mask_BL: True on the tokens of the response; prompt and padding do not count.

    Raises:
        BellmError: A response is empty or holds the first token, or the mask has another shape.
    """
    _check_mask(log_probs_BL, mask_BL)
    return upcast(log_probs_BL).masked_fill(~mask_BL, 0.0).sum(1)


def response_means(log_probs_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean log-probability of a response's tokens, shape (B,): the generation score of GRL (arXiv 2408.03402).

    >>> response_means(torch.tensor([[0.0, -9.0, -1.0, -2.0]]), torch.tensor([[False, False, True, True]]))
    tensor([-1.5000])

    Args:
        log_probs_BL: From `token_log_probs`.
        mask_BL: True on the tokens of the response. (ULLME's code counts the prompt too, and with it how likely the
            query is.)

    Raises:
        BellmError: A response is empty or holds the first token, or the mask has another shape.
    """
    return response_sums(log_probs_BL, mask_BL) / mask_BL.sum(1)


def sft(log_probs_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """Mean cross-entropy over all response tokens of the batch, every token alike: supervised fine-tuning.

    >>> sft(torch.tensor([[0.0, -9.0, -1.0, -2.0]]), torch.tensor([[False, False, True, True]]))
    tensor(1.5000)

    Args:
        log_probs_BL: From `token_log_probs`.
        mask_BL: True on the tokens of the response.

    Raises:
        BellmError: A response is empty or holds the first token, or the mask has another shape.
    """
    return -response_sums(log_probs_BL, mask_BL).sum() / mask_BL.sum()


def dpo(
    policy_chosen_B: Tensor,
    policy_rejected_B: Tensor,
    reference_chosen_B: Tensor,
    reference_rejected_B: Tensor,
    *,
    beta: float = 0.1,
    form: PreferenceForm = "sigmoid",
) -> Tensor:
    """Direct preference: the chosen response gains on the rejected one, measured from the reference model.

    With h = (policy - reference) of the chosen - (policy - reference) of the rejected, the mean of

    - `sigmoid`: -log sigmoid(beta h), DPO (arXiv 2305.18290, equation 7)
    - `hinge`: max(0, 1 - beta h), as in SLiC (arXiv 2305.10425)
    - `ipo`: (h - 1 / (2 beta))^2, IPO (arXiv 2310.12036, equation 17); its authors mean responses alike in length

    >>> zero = torch.zeros(1)
    >>> dpo(zero, zero, zero, zero)  # Policy and reference alike: log 2.
    tensor(0.6931)

    Args:
        policy_chosen_B: `response_sums` of the model that learns.
        policy_rejected_B: Of its rejected responses.
        reference_chosen_B: Of the model as it was; no gradient flows.
        reference_rejected_B: Of its rejected responses.
        beta: How much a gain counts; the larger, the closer the policy stays to the reference.
        form: What is asked of the gain.

    Raises:
        BellmError: No responses, not as many of each, or an unknown form.
    """
    check_choice("form", form, PreferenceForm)
    chosen_B, rejected_B = _gains(policy_chosen_B, policy_rejected_B, reference_chosen_B, reference_rejected_B)
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
    """KTO on pairs: each response is good or bad by itself, measured from what the model gains on the other kind.

    With g = policy - reference, and z = max(0, mean of g) over the batch, the mean over all 2B responses of
    1 - sigmoid(beta (g_chosen - z_rejected)) and 1 - sigmoid(beta (z_chosen - g_rejected)): KTO (arXiv 2402.01306) in
    the form for pairs that TRL once had and ULLME has as `kto_pair`, in which each kind's point of reference is
    estimated from the other kind. As the paper says, and other than in that code, no gradient flows into z.

    >>> zero = torch.zeros(1)
    >>> kto_pair(zero, zero, zero, zero)
    tensor(0.5000)

    Args:
        policy_chosen_B: `response_sums` of the model that learns.
        policy_rejected_B: Of its rejected responses.
        reference_chosen_B: Of the model as it was; no gradient flows.
        reference_rejected_B: Of its rejected responses.
        beta: How much a gain counts.

    Raises:
        BellmError: No responses, or not as many of each.
    """
    chosen_B, rejected_B = _gains(policy_chosen_B, policy_rejected_B, reference_chosen_B, reference_rejected_B)
    from_chosen, from_rejected = (gains_B.detach().mean().relu() for gains_B in (chosen_B, rejected_B))
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
    """What a model finds near a query, and what it would write for it, told to agree: the KL term of GRL.

    KL(P_rt || P_gen) = sum of P_rt log(P_rt / P_gen) over each query's candidates, averaged over queries (ULLME, arXiv
    2408.03402), with P_rt = softmax(retrieval / temperature) and P_gen = softmax(generation).

    ULLME's code has the other direction, KL(P_gen || P_rt), and detaches P_gen, so that only retrieval learns:
    `direction="reverse", detached="generation"`.

    >>> alignment(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 1.0986]]))  # Halves against 1/4 and 3/4.
    tensor(0.1438)

    Args:
        retrieval_BC: Cosines of each query with its candidates, its positives and its negatives.
        generation_BC: `response_means` of the same candidates, written for the query.
        temperature: Divides the cosines.
        direction: The paper's, or the code's reverse.
        detached: A side that does not learn.

    Raises:
        BellmError: No queries, fewer than two candidates, scores that do not match, or an unknown choice.
    """
    check_choice("direction", direction, Direction)
    check_choice("detached", detached, Side)
    if retrieval_BC.shape != generation_BC.shape or not len(retrieval_BC) or retrieval_BC.shape[1] < 2:
        came = f"{tuple(retrieval_BC.shape)} and {tuple(generation_BC.shape)}"
        raise BellmError(f"Scores of shapes {came}. Give both a row a query, of two or more candidates.")
    retrieval_BC = retrieval_BC.detach() if detached == "retrieval" else retrieval_BC
    generation_BC = generation_BC.detach() if detached == "generation" else generation_BC
    found_BC = (upcast(retrieval_BC) / temperature).log_softmax(1)
    written_BC = upcast(generation_BC).log_softmax(1)
    of_BC, from_BC = (found_BC, written_BC) if direction == "paper" else (written_BC, found_BC)
    return functional.kl_div(from_BC, of_BC, reduction="batchmean", log_target=True)


def _gains(*log_probs: Tensor) -> tuple[Tensor, Tensor]:
    """Policy less reference, of the chosen and of the rejected responses."""
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    check_rows(**dict(zip(names, log_probs, strict=True)))
    policy_chosen_B, policy_rejected_B, reference_chosen_B, reference_rejected_B = map(upcast, log_probs)
    return policy_chosen_B - reference_chosen_B.detach(), policy_rejected_B - reference_rejected_B.detach()


def _check_mask(log_probs_BL: Tensor, mask_BL: Tensor) -> None:
    if log_probs_BL.shape != mask_BL.shape:
        shapes = f"{tuple(log_probs_BL.shape)} and {tuple(mask_BL.shape)}"
        raise BellmError(f"Log-probabilities and mask of shapes {shapes}. Give a mask of the tokens themselves.")
    if not mask_BL.any(1).all() or not len(mask_BL):
        raise BellmError("A response has no tokens, and so no likelihood. Leave it out, or leave the prompt shorter.")
    if mask_BL[:, 0].any():
        raise BellmError("A response begins with the first token, which nothing predicts. Give it a prompt.")
