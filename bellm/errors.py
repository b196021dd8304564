"""Everything bellm raises or warns of on purpose."""


class BellmError(ValueError):
    """Base of all errors that bellm raises for its users: a mistake or an impossible wish, said in one line."""


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
    """Base of all warnings that bellm gives: the work goes on, and differs from what one may think."""


class NoOpWarning(BellmWarning):
    """The open layers change nothing, or fewer layers open than were asked for."""


class TruncationWarning(BellmWarning):
    """Texts were longer than `max_tokens` and were cut."""


class CorpusWarning(BellmWarning):
    """A shard was damaged and is made anew, or a corpus holds files that were not named."""


class MemoryWarning(BellmWarning):
    """Batches became smaller, because memory did not hold them."""
