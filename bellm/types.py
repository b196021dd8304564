"""Names shared by every floor."""

from os import PathLike
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
"""Float32 matrix of shape (texts, width)."""

Path = str | PathLike[str]

Variant = Literal["sequential", "parallel"]
"""How the paper's equation is read: open layers in the stack, or as a branch of their own beside it."""

Window = Literal["keep", "open"]
"""What an opened sliding-window or chunked layer does with its window."""

InputType = Literal["text", "query", "document"]
"""What a text is to a search; prompts may put queries and documents differently."""

PoolingName = Literal["last", "mean", "mean-text", "weighted-mean", "first", "max"]

DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
