"""Side information beside the text of a prompt: hints, AMR graphs, verdicts of a probe, retrieved examples; measured.

Names are imported when they are first asked for, with a check that the extra `evaluate` is installed.
"""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.augment.arm_names import parse_arms
    from bellm.augment.augment_page import arm_table, check_augment_folder, write_augmentation
    from bellm.augment.augmentation import Augmentation, augment
    from bellm.augment.label_scorer import LabelScorer, calibrate_batch, calibrate_contextual, label_probabilities
    from bellm.augment.task_prompts import TASK_PROMPTS, TRANSLATION, SideInformation, TaskPrompt, make_prompt
    from bellm.augment.tasks import LabeledTask, check_task_name, read_task

__all__ = ["Augmentation", "LabelScorer", "LabeledTask", "SideInformation", "TaskPrompt", "arm_table", "augment"]
__all__ += ["calibrate_batch", "calibrate_contextual", "check_augment_folder", "check_task_name", "label_probabilities"]
__all__ += ["TASK_PROMPTS", "TRANSLATION", "make_prompt", "parse_arms", "read_task", "write_augmentation"]

__getattr__, __dir__ = lazy_exports(__name__, "evaluate")
