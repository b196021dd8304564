"""An embedder that a test can hold up, and that some texts make fail."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bellm.types import InputType, Vectors
from tests.processes import LIMIT


class Planted:
    """Vectors begin with length and first character of a text; one of three characters has one token for a server."""

    def __init__(self, width: int = 2) -> None:
        self.embedding_dim = width
        self.batches: list[list[str]] = []
        """Texts of every call that has begun."""
        self.open = threading.Event()
        """Calls wait for it."""
        self.open.set()
        self.seconds = 0.0
        """How long a call takes."""
        self.faults: dict[str, Callable[[], Any]] = {}
        """What happens where a text is among those of a call."""

    def encode(self, texts: Sequence[str], *, input_type: InputType = "text") -> Vectors:
        self.batches.append(list(texts))
        assert self.open.wait(LIMIT)
        time.sleep(self.seconds)
        for text in texts:
            if text in self.faults:
                self.faults[text]()
        vectors = np.zeros((len(texts), self.embedding_dim), dtype=np.float32)
        vectors[:, :2] = [[len(text), ord(text[0])] if text != "nan" else [np.nan, 0] for text in texts]
        return vectors

    def fingerprint(self) -> Vectors:
        return self.encode(["one", "two"])

    def describe(self) -> dict[str, Any]:
        return {"name": "planted"}
