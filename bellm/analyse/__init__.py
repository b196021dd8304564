"""Compare what encoders and their layers make of the same texts: measures, each with its chance level.

Names are imported when they are first asked for, with a check that the extra is installed.
"""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.analyse.agreement import Agreement, measure_agreement
    from bellm.analyse.comparison import ComparedPair, Measured, compare_vectors
    from bellm.analyse.measures import MEASURES, Measure

__all__ = ["MEASURES", "Agreement", "ComparedPair", "Measure", "Measured", "compare_vectors", "measure_agreement"]

__getattr__, __dir__ = lazy_exports(__name__, "evaluate")
