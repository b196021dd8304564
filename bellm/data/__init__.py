"""Data sets for evaluation, published ones from a folder or from the Hub, and files of your own."""

from bellm.data.amr import Graphs, find_graphs, linearize, read_graphs
from bellm.data.classification import CLASSIFICATION_SOURCES, LabeledTexts, read_classification
from bellm.data.labeled_sets import LABEL_NAMES, LABELED_SOURCES, read_labeled
from bellm.data.own_files import read_labeled_file, read_own_data
from bellm.data.retrieval import RETRIEVAL_SOURCES, RetrievalData, read_beir_folder, read_retrieval
from bellm.data.sts import STS_SOURCES, STSPairs, clean_text, read_sts
from bellm.data.word_sets import WordRelation, read_rated_words, read_relations

__all__ = ["CLASSIFICATION_SOURCES", "RETRIEVAL_SOURCES", "STS_SOURCES"]
__all__ += ["Graphs", "LABELED_SOURCES", "LABEL_NAMES", "LabeledTexts", "RetrievalData", "STSPairs"]
__all__ += ["find_graphs", "linearize", "read_labeled", "read_labeled_file"]
__all__ += [
    "WordRelation",
    "clean_text",
    "read_beir_folder",
    "read_classification",
    "read_graphs",
    "read_own_data",
    "read_rated_words",
]
__all__ += ["read_relations", "read_retrieval", "read_sts"]
