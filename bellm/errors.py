"""Everything bellm raises or warns of on purpose.

ValueError
└── BellmError            a user's mistake or an impossible wish, said in one line
    ├── LayerError        a direction map that does not fit, or a layer that cannot open
    ├── PromptError       an unknown prompt, a template without its slot, no room for the text
    ├── SourceError       a model, folder or file that cannot be read
    ├── FingerprintError  the model that was loaded is not the model that was saved
    ├── MissingExtraError the packages of an extra are not installed (an ImportError too)
    └── MemoryLimitError  a text that does not fit in memory

UserWarning
└── BellmWarning          the work goes on, and differs from what one may think
    ├── NoOpWarning       the open layers change nothing, or less than asked
    ├── TruncationWarning texts were cut to fit
    ├── MemoryWarning     batches became smaller to fit in memory
    └── CorpusWarning     a shard was damaged, or a corpus holds more than was asked for
"""


class BellmError(ValueError):
    """Base of all errors that bellm raises for its users."""


class LayerError(BellmError):
    """A direction map does not fit the model, or a chosen layer cannot be opened."""


class PromptError(BellmError):
    """A prompt is unknown, has no `{text}` slot, or leaves no room for the text."""


class SourceError(BellmError):
    """A model, folder or file cannot be read or written as asked."""


class FingerprintError(BellmError):
    """A saved encoder does not give the vectors that it gave when it was saved."""


class MissingExtraError(BellmError, ImportError):
    """The packages of an optional extra are not installed."""


class MemoryLimitError(BellmError):
    """A single text does not fit in memory."""


class BellmWarning(UserWarning):
    """Base of all warnings that bellm gives."""


class NoOpWarning(BellmWarning):
    """The open layers change nothing, or fewer layers open than were asked for."""


class TruncationWarning(BellmWarning):
    """Texts were longer than `max_tokens` and were cut."""


class CorpusWarning(BellmWarning):
    """A shard was damaged and is made anew, or a corpus holds files that were not named."""


class MemoryWarning(BellmWarning):
    """Batches became smaller, because memory did not hold them."""
