"""Embed texts of any number into a folder of shards that is resumed after any stop, and search them."""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.corpus.corpus_config import read_encoder_ref
    from bellm.corpus.index import Index, build_index, search_corpus
    from bellm.corpus.job import CorpusProgress, CorpusReport, embed_corpus
    from bellm.corpus.manifest import Manifest, read_manifest
    from bellm.corpus.ray_executor import RayExecutor

__all__ = ["CorpusProgress", "CorpusReport", "Index", "Manifest", "RayExecutor", "build_index", "embed_corpus"]
__all__ += ["read_encoder_ref", "read_manifest", "search_corpus"]

__getattr__, __dir__ = lazy_exports(__name__, "corpus")
