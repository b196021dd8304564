"""Train an encoder that has lost layers until texts are as similar to each other as they were before."""

from collections.abc import Callable, Sequence
from pathlib import Path

from bellm.encoder import Encoder
from bellm.errors import BellmError, check_encoder
from bellm.types import Embedder

RecoveryProgress = Callable[[int, int], None]
"""Called after every step with its number and how many there are."""

_BATCH_SIZE = 64
"""Texts of a step, whose similarities to each other are compared."""


def recover(
    encoder: Encoder,
    teacher: Embedder,
    texts: Sequence[str],
    steps: int,
    run_dir: str | Path,
    progress: RecoveryProgress = lambda *_: None,
) -> Encoder:
    """Train a smaller encoder to give the similarities of the one it was made of; the given one stays as it is.

    Low-rank adapters learn by distillation (`bellm.train.Distillation`) and are merged. No rating is needed. Weights
    that were pruned would come back, so recover before pruning, and before quantizing.

    Args:
        encoder: With fewer layers than the teacher, say.
        teacher: The encoder as it came, or a file of its vectors of these texts.
        texts: Of the kind that will be embedded, a thousand or more, and never those that are scored.
        steps: Of training, each on 64 texts.
        run_dir: Folder of the training; the same call goes on where it was stopped.
        progress: Told every step.

    Raises:
        BellmError: There are too few texts, or the encoder is pruned, quantized or centered.
        SourceError: The folder holds another training.
        MissingExtraError: Training needs the extra train.
    """
    check_encoder(encoder, Encoder)
    check_recovery_texts(texts)
    if any(step.get("kind") == "prune" for step in encoder.compression):
        raise BellmError("Training brings weights back that were pruned: recover first, and prune after that.")
    from bellm.train import Dataset, Distillation, Example, Recipe, train

    recipe = Recipe(
        model=encoder, objective=Distillation(teacher), batch_size=_BATCH_SIZE, epochs=steps, max_steps=steps
    )
    texts = list(dict.fromkeys(texts))
    if (rest := len(texts) % _BATCH_SIZE) < 3:  # Such a last batch has no similarities to compare.
        texts = texts[: len(texts) - rest]
    rows = Dataset("texts", (Example(text, ()) for text in texts))
    trained = train(recipe, rows, run_dir, progress=lambda step, total, _: progress(step, total))
    trained.name, trained.source = encoder.name, encoder.source
    record = {
        "kind": "recover",
        "summary": f"trained {steps} steps on {len(rows):,} texts to give the similarities of all layers",
        "steps": steps,
        "texts": len(rows),
    }
    return trained.with_compression(record)


def check_recovery_texts(texts: Sequence[str]) -> None:
    """Raise a BellmError where there are too few texts to train on."""
    if (number := len(set(texts))) < _BATCH_SIZE:
        raise BellmError(
            f"Recovery trains on calibration texts, and {number} are too few: give {_BATCH_SIZE} or more, better a "
            "thousand."
        )
