"""Side information beside the text of a prompt: hints, AMR graphs, verdicts of a probe, retrieved examples; measured.

Names are imported when they are first asked for, with a check that the extra `evaluate` is installed.
"""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.augment.label_scorer import LabelScorer, calibrate_batch, calibrate_contextual, label_probabilities

__all__ = ["LabelScorer", "calibrate_batch", "calibrate_contextual", "label_probabilities"]

__getattr__, __dir__ = lazy_exports(__name__, "evaluate")
