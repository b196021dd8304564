"""Evaluate embedders on published tasks: scores with intervals, paired tests, a report.

Names are imported when they are first asked for, with a check that the extra is installed.
"""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.evaluate.evaluated_model import EvaluatedModel
    from bellm.evaluate.models import load_model, load_models
    from bellm.evaluate.mteb_encoder import MtebEncoder
    from bellm.evaluate.report_files import check_report_folder, write_report
    from bellm.evaluate.results import Report, TaskResult
    from bellm.evaluate.suite import DevEvaluator, evaluate, resolve_tasks
    from bellm.evaluate.task import Task
    from bellm.evaluate.vector_cache import default_cache_folder

__all__ = [
    "DevEvaluator",
    "EvaluatedModel",
    "MtebEncoder",
    "Report",
    "Task",
    "TaskResult",
    "check_report_folder",
    "default_cache_folder",
    "evaluate",
    "load_model",
    "load_models",
    "resolve_tasks",
    "write_report",
]

__getattr__ = lazy_exports(
    __name__,
    "evaluate",
    {
        **dict.fromkeys(("DevEvaluator", "evaluate", "resolve_tasks"), "suite"),
        **dict.fromkeys(("load_model", "load_models"), "models"),
        **dict.fromkeys(("Report", "TaskResult"), "results"),
        **dict.fromkeys(("check_report_folder", "write_report"), "report_files"),
        "EvaluatedModel": "evaluated_model",
        "MtebEncoder": "mteb_encoder",
        "Task": "task",
        "default_cache_folder": "vector_cache",
    },
)
