"""Losses on log-probabilities against closed forms written out, and what ULLME's code gets wrong."""

import pytest
import torch
from torch import Tensor

from bellm.errors import BellmError
from bellm.tensors.losses.loss_inputs import cosine_matrix
from bellm.tensors.losses.preferences import dpo, kto_pair, retrieval_generation_kl

DRAW = torch.Generator().manual_seed(0)
LOGITS = torch.randn(3, 6, 11, generator=DRAW, dtype=torch.float64)
IDS = torch.randint(11, (3, 6), generator=DRAW)
GAINS = 5 * torch.randn(4, 7, generator=DRAW, dtype=torch.float64)
POLICY, REFERENCE = GAINS[:2].T, GAINS[2:].T  # Of the chosen and of the rejected responses.
RETRIEVAL = torch.rand(4, 3, generator=DRAW, dtype=torch.float64)
GENERATION = -3 * torch.rand(4, 3, generator=DRAW, dtype=torch.float64)


def test_preference_is_its_closed_form() -> None:
    policy, reference = POLICY.clone().requires_grad_(), REFERENCE.clone().requires_grad_()
    value = dpo(policy, reference, beta=0.1)
    value.backward()
    ahead = (POLICY - REFERENCE)[:, 0] - (POLICY - REFERENCE)[:, 1]
    torch.testing.assert_close(value.detach(), -(1 / (1 + (-0.1 * ahead).exp())).log().mean())
    slopes = -0.1 / (1 + (0.1 * ahead).exp()) / 7
    torch.testing.assert_close(policy.grad, torch.stack([slopes, -slopes], 1))
    assert reference.grad is None  # The reference is not to learn.
    assert policy.grad is not None
    assert policy.grad.all()


def test_kto_on_pairs_is_its_closed_form_and_its_reference_points_do_not_learn() -> None:
    policy, reference = POLICY.clone().requires_grad_(), REFERENCE.clone().requires_grad_()
    value = kto_pair(policy, reference, beta=0.3)
    value.backward()
    good, bad = (POLICY - REFERENCE).T
    of_good, of_bad = (0.3 * (good - max(bad.mean(), 0))), 0.3 * (max(good.mean(), 0) - bad)
    shares = torch.cat([of_good, of_bad]).sigmoid()
    torch.testing.assert_close(value.detach(), (1 - shares).mean())
    slopes = -0.3 * shares * (1 - shares) / 14
    torch.testing.assert_close(policy.grad, torch.stack([slopes[:7], -slopes[7:]], 1))
    assert reference.grad is None
    assert max(good.mean(), bad.mean()) > 0  # Or the points of reference would not show.


def divergence(of: Tensor, from_: Tensor) -> Tensor:
    return (of * (of / from_).log()).sum(1).mean()


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_alignment_in_both_directions(temperature: float) -> None:
    found, written = (RETRIEVAL / temperature).softmax(1), GENERATION.softmax(1)
    torch.testing.assert_close(
        retrieval_generation_kl(RETRIEVAL, GENERATION, temperature=temperature), divergence(found, written)
    )
    reverse = retrieval_generation_kl(RETRIEVAL, GENERATION, temperature=temperature, direction="reverse")
    torch.testing.assert_close(reverse, divergence(written, found))
    assert not torch.isclose(reverse, divergence(found, written))


def test_both_sides_of_the_alignment_learn_by_its_closed_form() -> None:
    retrieval, generation = RETRIEVAL.clone().requires_grad_(), GENERATION.clone().requires_grad_()
    retrieval_generation_kl(retrieval, generation, temperature=0.5).backward()
    found, written = (RETRIEVAL / 0.5).softmax(1), GENERATION.softmax(1)
    ratio = (found / written).log()
    own = found * (ratio - (found * ratio).sum(1, keepdim=True)) / 0.5 / 4
    torch.testing.assert_close(retrieval.grad, own)
    torch.testing.assert_close(generation.grad, (written - found) / 4)
    assert own.abs().min() > 1e-6


def test_every_term_of_grl_reaches_the_weights() -> None:
    # In ULLME's first releases only the contrastive term had a gradient.
    weights = torch.randn(11, 11, generator=DRAW, dtype=torch.float64).requires_grad_()
    log_probs = (LOGITS @ weights).log_softmax(2).gather(2, IDS[..., None])[..., 0]
    responses, zero = log_probs.sum(1)[None, :2], torch.zeros(1, 2, dtype=torch.float64)
    terms = {
        "dpo": dpo(responses, zero),
        "kto": kto_pair(responses, zero),
        "retrieval": retrieval_generation_kl(
            cosine_matrix((LOGITS @ weights)[:1, 0], (LOGITS @ weights)[1:, 0]), GENERATION[:1, :2]
        ),
        "generation": retrieval_generation_kl(RETRIEVAL[:1], log_probs.mean(1)[None]),
    }
    for name, term in terms.items():
        (gradient,) = torch.autograd.grad(term, weights, retain_graph=True)
        assert gradient.norm() > 1e-4, name


def test_planted_query_and_passage_come_to_agree() -> None:
    retrieval = torch.tensor([[0.2, 0.3, 0.1]], requires_grad=True)
    generation = torch.tensor([[-3.0, -1.0, -2.0]], requires_grad=True)
    before = retrieval_generation_kl(retrieval, generation)
    for _ in range(200):
        gradients = torch.autograd.grad(retrieval_generation_kl(retrieval, generation), (retrieval, generation))
        retrieval, generation = (
            (part - rate * gradient).detach().requires_grad_()
            for part, rate, gradient in zip((retrieval, generation), (1e-3, 0.3), gradients, strict=True)
        )
    assert retrieval_generation_kl(retrieval, generation) < 1e-2 * before


def test_half_precision_is_computed_in_full() -> None:
    halves = POLICY.bfloat16(), REFERENCE.bfloat16()
    for loss in (dpo, kto_pair):
        assert loss(*halves) == loss(*(part.float() for part in halves))
    scores = RETRIEVAL.bfloat16(), GENERATION.bfloat16()
    assert retrieval_generation_kl(*scores) == retrieval_generation_kl(scores[0].float(), scores[1].float())


def test_what_cannot_be_compared_is_refused() -> None:
    for loss in (dpo, kto_pair):
        for pair in ((POLICY, REFERENCE[:6]), (POLICY[:0], REFERENCE[:0]), (POLICY[:, :1], REFERENCE[:, :1])):
            with pytest.raises(BellmError, match="two or more candidates"):
                loss(*pair)
    for scores in ((RETRIEVAL[:, :1], GENERATION[:, :1]), (RETRIEVAL, GENERATION[:3]), (RETRIEVAL[:0], GENERATION[:0])):
        with pytest.raises(BellmError, match="two or more candidates"):
            retrieval_generation_kl(*scores)
    with pytest.raises(BellmError, match=r"direction='upstream' is not one of paper, reverse"):
        retrieval_generation_kl(RETRIEVAL, GENERATION, direction="upstream")  # type: ignore[arg-type]
