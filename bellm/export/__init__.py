"""Encoders in other libraries' formats, proved there to give the same vectors.

Names are imported when they are first asked for.
"""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.export.export_formats import EXPORT_FORMATS, ExportFormat, FormatName
    from bellm.export.exporting import export
    from bellm.export.parity import Parity, diagnose_export

__all__ = ["EXPORT_FORMATS", "ExportFormat", "FormatName", "Parity", "diagnose_export", "export"]

__getattr__, __dir__ = lazy_exports(__name__)
