"""Find out which layers of a model to open, without training or after a little."""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.layer_search.finder import Finding, HalvingTraining, find_layers
    from bellm.layer_search.layer_page import check_finding_folder, write_finding

__all__ = ["Finding", "HalvingTraining", "check_finding_folder", "find_layers", "write_finding"]

__getattr__, __dir__ = lazy_exports(__name__, "evaluate")
