"""Smaller encoders: weights removed by the shape of their spectra and by what texts make of them, and layers left out.

Names are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.compress.allocation import allocate, allocate_by_outliers
    from bellm.compress.centering import center
    from bellm.compress.compress_page import check_compress_folder, write_compression
    from bellm.compress.compression import Compression, CompressionRow, compress
    from bellm.compress.grid import Grid, default_grid
    from bellm.compress.layer_dropping import drop_layers, layer_changes
    from bellm.compress.pruning import prune, spread_texts
    from bellm.compress.quantization import quantize
    from bellm.compress.recovery import recover
    from bellm.compress.spectra import MatrixSpectrum, hill_alpha, layer_alphas, measure_spectra
    from bellm.compress.spectra_page import check_spectra_folder, write_spectra

__all__ = ["MatrixSpectrum", "allocate", "allocate_by_outliers", "center", "drop_layers", "hill_alpha", "layer_alphas"]
__all__ += ["check_spectra_folder", "layer_changes", "measure_spectra", "prune", "quantize", "recover", "spread_texts"]
__all__ += ["Compression", "CompressionRow", "Grid", "check_compress_folder", "compress", "default_grid"]
__all__ += ["write_compression", "write_spectra"]

__getattr__, __dir__ = lazy_exports(__name__)
