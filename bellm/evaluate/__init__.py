"""Evaluate embedders on published tasks: scores with intervals, paired tests, a report.

Names are imported when they are first asked for, with a check that the extra is installed.
"""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.evaluate.dev_pairs import read_dev_set
    from bellm.evaluate.evaluated_model import EvaluatedModel, open_cache
    from bellm.evaluate.logistic_regression import fit_logits
    from bellm.evaluate.models import load_model, load_models
    from bellm.evaluate.mteb_encoder import MtebEncoder
    from bellm.evaluate.report_page import check_report_folder, write_report, write_report_page
    from bellm.evaluate.report_text import compare_with_words, score_table
    from bellm.evaluate.results import Report, TaskResult
    from bellm.evaluate.sts_task import STSTask, score_sts
    from bellm.evaluate.suite import DevEvaluator, evaluate, load_tasks
    from bellm.evaluate.task import Task
    from bellm.io.cache import default_cache_folder

__all__ = ["DevEvaluator", "EvaluatedModel", "MtebEncoder", "Report", "STSTask", "Task", "TaskResult"]
__all__ += [
    "check_report_folder",
    "compare_with_words",
    "default_cache_folder",
    "evaluate",
    "fit_logits",
    "load_model",
    "load_models",
    "load_tasks",
]
__all__ += ["open_cache", "read_dev_set", "score_sts", "score_table", "write_report", "write_report_page"]

__getattr__, __dir__ = lazy_exports(__name__, "evaluate")
