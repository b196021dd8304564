"""pyarrow, or the one error that says it is missing: import it from here."""

from bellm.errors import SourceError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise SourceError("Parquet files need pyarrow: pip install 'bellm[corpus]'.") from error

__all__ = ["pa", "pq"]
