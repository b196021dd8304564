"""Masks against loops over texts and cosines."""

import numpy as np
import pytest
import torch

from bellm.errors import BellmError
from bellm.tensors.losses.contrastive import false_negatives, info_nce

DRAW = np.random.default_rng(0)
ANCHORS, POSITIVES, NEGATIVES = (DRAW.normal(size=(rows, 4)) for rows in (3, 5, 4))
OWNERS = [2, 0, 1, 1, 0]


@pytest.mark.parametrize("margin", [-0.2, 0.0, 0.3])
def test_false_negatives_are_at_least_as_near_as_the_furthest_positive(margin: float) -> None:
    candidates = np.vstack([POSITIVES, NEGATIVES])
    cosines = ANCHORS @ candidates.T / np.linalg.norm(ANCHORS, axis=1)[:, None] / np.linalg.norm(candidates, axis=1)
    wanted = [
        [
            (at >= 5 or OWNERS[at] != row)
            and cosines[row, at] >= min(cosines[row, :5][np.array(OWNERS) == row]) - margin
            for at in range(9)
        ]
        for row in range(3)
    ]
    guides = [torch.tensor(part) for part in (ANCHORS, POSITIVES, NEGATIVES)]
    found = false_negatives(*guides, owners_P=torch.tensor(OWNERS), margin=margin)
    assert found.tolist() == wanted
    assert 0 < found.sum() < 22


def test_a_candidate_exactly_as_near_is_one() -> None:
    # Whole numbers: the cosines of both candidates are exactly 1, and the margin is no rounding matter.
    anchors, positives = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[4.0, 0.0], [8.0, 0.0]])
    assert false_negatives(anchors, positives).tolist() == [[False, True], [True, False]]
    assert false_negatives(anchors, torch.eye(2)).tolist() == [[False, False], [False, False]]


def test_what_is_masked_is_as_if_it_were_not_there() -> None:
    draw = torch.Generator().manual_seed(0)
    anchors, positives, negatives = torch.randn(3, 2, 6, generator=draw)
    negatives = torch.cat([anchors + 0.01, negatives])  # Nearer than any positive, each to its anchor.
    ignored = false_negatives(anchors, positives, negatives)
    assert ignored[0, 2]
    assert ignored[1, 3]
    candidates, alone = torch.cat([positives, negatives]), []
    for row in range(2):
        kept = ~ignored[row] & (torch.arange(6) != row)
        alone.append(info_nce(anchors[[row]], positives[[row]], candidates[kept]))
    found = info_nce(anchors, positives, negatives, ignored_BC=ignored)
    torch.testing.assert_close(found, torch.stack(alone).mean())


def test_a_batch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(BellmError, match="3 anchors, 5 positives"):
        false_negatives(torch.tensor(ANCHORS), torch.tensor(POSITIVES))
    with pytest.raises(BellmError, match="0 anchors"):
        false_negatives(torch.zeros(0, 4), torch.zeros(0, 4))
    with pytest.raises(BellmError, match="Each anchor needs a positive"):
        false_negatives(torch.zeros(2, 4), torch.zeros(1, 4), owners_P=torch.tensor([1]))
