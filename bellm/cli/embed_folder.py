"""`bellm embed` to a folder of shards."""

import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bellm.cli.model_options import ModelOptions
from bellm.corpus.input_files import check_columns, expand_inputs
from bellm.errors import BellmError
from bellm.io.rows import TextColumns

if TYPE_CHECKING:
    from bellm.corpus.job import CorpusProgress
    from bellm.corpus.ray_executor import RayExecutor


def embed_to_folder(
    source: str,
    options: ModelOptions,
    inputs: list[str],
    output: str,
    *,
    column: str,
    engine: str,
    workers: int | None,
    **how: Any,
) -> dict[str, Any]:
    """Embed a corpus with a progress bar; what came of it, for JSON.

    Raises:
        KeyboardInterrupt: Ctrl-C, with what is left of the work in words.
    """
    import bellm.io.arrow  # noqa: F401 - says what is missing before a model is loaded

    if engine == "local" and workers is not None:
        raise BellmError("--workers belongs to --engine ray: one process embeds here.")

    check_columns(expand_inputs(inputs, Path(output)), TextColumns(column, how["id_column"]))
    try:
        encoder = options.load(source)
        from bellm.corpus.job import embed_corpus

        how["executor"] = _ray(source, options, workers) if engine == "ray" else None
        # Ray tells of dead workers on standard output, where the result goes.
        with CorpusProgressBar() as bar, contextlib.redirect_stdout(sys.stderr):
            report = embed_corpus(encoder, inputs, output, source=source, column=column, progress=bar.show, **how)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"finished shards are kept in {output}, and the same command goes on there.") from None
    found = vars(report.manifest)
    return {
        **{name: found[name] for name in ("rows", "unreadable", "truncated", "tokens", "embedding_dim")},
        "shards": len(report.manifest.shards),
        "new_rows": report.new_rows,
        "output": output,
        "encoder": report.manifest.encoder,
        "seconds": round(report.seconds, 3),
    }


def _ray(source: str, options: ModelOptions, workers: int | None) -> "RayExecutor":
    from bellm.corpus.ray_executor import RayExecutor

    return RayExecutor(source=source, workers=workers, options=options.relocation())


def corpus_summary(result: dict[str, Any]) -> str:
    """The result for people."""
    encoder = result["encoder"]
    return (
        f"{result['output']}: {result['rows']} rows of {result['embedding_dim']} dimensions in "
        f"{result['shards']} shards, {result['new_rows']} of them new, "
        f"open layers {encoder['bidirectional']} of {encoder['num_layers']}, computed in {encoder['dtype']} in "
        f"{result['seconds']:.1f} s ({result['new_rows'] / max(result['seconds'], 1e-3):.0f} texts/s)"
    )


class CorpusProgressBar:
    """Rows, tokens a second and the time left, for people at a terminal."""

    def __init__(self) -> None:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("checking what is there", total=None)
        self._first: tuple[float, CorpusProgress] | None = None

    def __enter__(self) -> "CorpusProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, now: "CorpusProgress") -> None:
        """Show how far it is; speeds are those since the first call, for what was there before took no time."""
        clock = time.monotonic()
        if self._first is None:
            self._first = clock, now
        start, first = self._first
        words = f"{now.rows:,} rows"
        if clock > start and now.rows > first.rows:
            words += f", {(now.tokens - first.tokens) / (clock - start):,.0f} tokens/s"
        if clock > start and now.share > first.share:
            left = (1 - now.share) / (now.share - first.share) * (clock - start)
            words += f", {_duration(left)} left"
        self._bar.update(self._task, description=words, completed=now.share, total=1 if now.share else None)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
