"""The command line: one command for each verb."""

import signal
import sys
from pathlib import Path
from typing import Annotated, cast

import typer

from bellm.cli.analyse_command import analyse_command
from bellm.cli.augment_command import augment_command
from bellm.cli.cache_command import cache_command
from bellm.cli.center_command import center_command
from bellm.cli.combine_command import combine_command
from bellm.cli.compress_command import compress_command
from bellm.cli.demonstrations_command import demonstrations_command
from bellm.cli.embed_command import embed_command
from bellm.cli.evaluate_command import evaluate_command
from bellm.cli.export_command import export_command
from bellm.cli.layers_command import layers_command
from bellm.cli.list_commands import models_command, prompts_command, tasks_command
from bellm.cli.model_commands import doctor_command, info_command
from bellm.cli.option_file import read_option_file
from bellm.cli.prune_command import prune_command
from bellm.cli.quantize_command import quantize_command
from bellm.cli.search_command import index_command, search_command, similarity_command
from bellm.cli.serve_command import serve_command
from bellm.cli.spectra_command import spectra_command
from bellm.cli.terminal import CommandGroup, OneValueCommand, OptionalSourceCommand, open_streams, with_verbosity
from bellm.cli.train_command import train_command
from bellm.cli.words_command import words_command
from bellm.version import __version__

app = typer.Typer(
    name="bellm",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    embed_command,
    similarity_command,
    index_command,
    search_command,
    serve_command,
    evaluate_command,
    layers_command,
    analyse_command,
    words_command,
    train_command,
    combine_command,
    demonstrations_command,
    prune_command,
    spectra_command,
    quantize_command,
    center_command,
    compress_command,
    export_command,
    augment_command,
    doctor_command,
    info_command,
    tasks_command,
    prompts_command,
    models_command,
    cache_command,
):
    _class = OptionalSourceCommand if _command in (similarity_command, search_command) else OneValueCommand
    app.command(_command.__name__.removesuffix("_command"), cls=_class)(with_verbosity(_command))


def main() -> None:
    """Run the command line."""
    open_streams()
    # Without this a polite kill would leave half-written drafts behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    app(prog_name="bellm")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _bellm(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", help="Options of commands, in a TOML file: a table [embed], say.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Sentence embeddings from any decoder-only language model.

    In such a model each token sees only what comes before it. bellm opens the
    attention layers that you choose, so that tokens there look both ways, and
    pools their states into one vector for each text. Weights stay as they are.

    [bold]bellm info smollm2[/]
      what is this model, and which layers are open?
    [bold]bellm doctor smollm2 --bidirectional last:8[/]
      does it do what it says? measured, layer by layer
    [bold]bellm similarity "a river bank" "the shore of a stream"[/]
      how alike are two texts?
    [bold]bellm embed smollm2 sentences.txt -o vectors.npy --bidirectional last:8[/]
      one vector for each line, the last 8 layers open
    [bold]bellm search "how do birds sleep" --in notes.txt --top 5[/]
      the nearest lines of a file
    [bold]bellm index vectors/[/]
      a folder that bellm embed wrote, made searchable: bellm search "..." --in vectors/
    [bold]bellm serve my-encoder[/]
      vectors over HTTP, as OpenAI's and TEI's clients ask for them
    [bold]bellm evaluate smollm2 --tasks sts -o report/[/]
      scores on the standard tasks, with intervals and a page to look at
    [bold]bellm layers smollm2 -o layers/[/]
      which layers to open? scores of many maps, untrained, against the causal model
    [bold]bellm analyse smollm2 'smollm2?bidirectional=last:8' --texts notes.txt -o analysis/[/]
      what did opening change? similarity of vectors, each number with its chance level
    [bold]bellm words vectors:glove.txt smollm2 --data data/ -o words/[/]
      what do its word vectors know? similarity sets, related words, analogies
    [bold]bellm train smollm2 --data triplets.csv -o run/ --bidirectional last:8[/]
      low-rank adapters, from texts that belong together
    [bold]bellm combine run/ 'smollm2?prompt=angle' -o both/[/]
      several encoders as one, side by side
    [bold]bellm demonstrations smollm2 --candidates recipes/demonstrations.csv -o shown/[/]
      which example before the prompt helps?
    [bold]bellm prune smollm2 --drop-layers 6 -o lower/[/]
      a smaller encoder: fewer layers, or fewer weights
    [bold]bellm quantize smollm2 --bits 8 -o small/[/]
      the same weights in 8 or 4 bits
    [bold]bellm center smollm2 --texts notes.txt -o centered/[/]
      the mean vector of your texts, taken from all vectors
    [bold]bellm compress smollm2 --dev STSBenchmark-dev --within 1 -o smallest/[/]
      the smallest encoder that loses no more than a point
    [bold]bellm export smollm2 --to sentence-transformers -o for-st/ --bidirectional last:8[/]
      the same encoder in another library, proved there
    [bold]bellm augment smollm2 --task SST2-MR --with hint,receipt,retrieval -o side/[/]
      what a hint, a probe's verdict and near examples are worth to the language model
    [bold]bellm cache[/]
      what is kept to be quicker next time, and how to clear it
    """
    if config:
        context.default_map = read_option_file(config, cast(CommandGroup, context.command).commands)
