"""Everything that decides an encoder's vectors, for JSON."""

from typing import Any

from bellm.directions import describe
from bellm.encoder import Encoder


def facts(source: str, encoder: Encoder) -> dict[str, Any]:
    """What an encoder was loaded from, and its settings, as commands print them and a corpus keeps them."""
    settings = encoder.settings
    return {
        "source": source,
        "bidirectional": describe(settings.bidirectional),
        "open_layers": list(settings.bidirectional),
        "num_layers": encoder.num_layers,
        "reading": settings.reading,
        "window": settings.window,
        "prompt": settings.prompt.name,
        "template": settings.prompt.template,
        "query_template": settings.prompt.query,
        "document_template": settings.prompt.document,
        "pooling": settings.pooling,
        "layer": settings.layer,
        "max_tokens": settings.max_tokens,
        "dim": encoder.dim,
        "dtype": encoder.dtype_name,
        "device": str(encoder.device),
    }
