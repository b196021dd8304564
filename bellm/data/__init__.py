"""Published data sets, from a folder or from the Hub: STS, classification, retrieval and C-STS."""

from bellm.data.classification import LabeledTexts, read_classification
from bellm.data.csts import CSTSPairs, read_csts
from bellm.data.retrieval import RetrievalData, read_beir_folder, read_retrieval
from bellm.data.sts import STSPairs, clean_text, read_sts

__all__ = [
    "CSTSPairs",
    "LabeledTexts",
    "RetrievalData",
    "STSPairs",
    "clean_text",
    "read_beir_folder",
    "read_classification",
    "read_csts",
    "read_retrieval",
    "read_sts",
]
