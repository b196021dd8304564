"""Compare what encoders and their layers make of the same texts: measures, each with its chance level.

Names are imported when they are first asked for, with a check that the extra is installed.
"""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.analyse.agreement import Agreement, measure_agreement
    from bellm.analyse.analysis import Analysis, check_num_models, compare_representations, unique_texts
    from bellm.analyse.analysis_page import check_analysis_folder, write_analysis
    from bellm.analyse.analysis_text import analysis_tables, summarize_analysis
    from bellm.analyse.comparison import ComparedPair, Measured, check_draws, choose_measures, compare_vectors
    from bellm.analyse.measures import MEASURES, Measure
    from bellm.analyse.word_tasks import AnalogyTask, WordPairs, WordPairsTask
    from bellm.analyse.words import compare_words, make_word_tasks
    from bellm.analyse.words_page import agreement_table, check_words_folder, word_agreement, write_words

__all__ = ["MEASURES", "Agreement", "Analysis", "ComparedPair", "Measure", "Measured", "analysis_tables"]
__all__ += ["check_analysis_folder", "check_draws", "check_num_models", "choose_measures", "compare_representations"]
__all__ += ["AnalogyTask", "WordPairs", "WordPairsTask", "agreement_table", "check_words_folder", "compare_words"]
__all__ += [
    "make_word_tasks",
    "word_agreement",
    "write_words",
    "compare_vectors",
    "unique_texts",
    "measure_agreement",
    "summarize_analysis",
    "write_analysis",
]

__getattr__, __dir__ = lazy_exports(__name__, "evaluate")
