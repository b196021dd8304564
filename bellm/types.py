"""Types shared by all packages, and the protocol of whatever embeds texts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]
    """Float32 matrix of shape (texts, width)."""


def __getattr__(name: str) -> Any:
    """Make `Vectors`, for which NumPy is imported, when it is first asked for: the command line starts without."""
    if name != "Vectors":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import numpy as np
    from numpy.typing import NDArray

    return NDArray[np.float32]


Variant = Literal["sequential", "parallel"]
"""How the paper's equation is read: open layers in the stack, or as a branch of their own beside it."""

Window = Literal["keep", "open"]
"""What an opened sliding-window or chunked layer does with its window."""

InputType = Literal["text", "query", "document"]
"""What a text is to a search; prompts may have templates of their own for queries and documents."""

PoolingName = Literal["last", "mean", "mean-text", "weighted-mean", "first", "max"]

ReadoutName = Literal["hidden", "routing"]
"""What of a forward pass becomes a vector: the states of layers, or the routing weights of a mixture of experts."""

CenteringName = Literal["none", "mean", "whitening"]
"""What is taken from a vector: nothing, the mean vector of some texts, or that and the differences in variance."""

CombineMethod = Literal["concat", "sum", "mean"]
"""How vectors of several views become one: side by side, of length 1 in all; side by side, so that dot products are
weighted sums of cosines; weighted mean."""

TransformName = Literal["amr"]
"""What a view reads in place of a text: its AMR graph."""

BackendName = Literal["torch", "onnx", "openvino"]
"""What runs an encoder: the model itself, or the graph of an export."""

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


@runtime_checkable
class Embedder(Protocol):
    """Anything that embeds texts: an `Encoder`, a sentence-transformers model, a file of vectors.

    Corpora and evaluation ask for this and nothing else; layer search and text files need an `Encoder`.
    """

    @property
    def embedding_dim(self) -> int:
        """Width of the vectors."""

    def encode(self, texts: Sequence[str], *, input_type: InputType = "text") -> "Vectors":
        """Embed texts in their order, float32 (texts, embedding_dim)."""

    def fingerprint(self) -> "Vectors":
        """Vectors of a few fixed texts, by which two embedders are told apart."""

    def describe(self) -> dict[str, Any]:
        """What it is and every setting that decides its vectors, as JSON values."""
