"""A first result: open layers of SmolLM2, embed some sentences, and see what came of it.

Run it with `make demo`, or `python examples/first_result.py --help`.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import transformers
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bellm import Encoder
from bellm.backbone.leakage import measure_leakage
from bellm.layer_spec import format_layers
from bellm.tensors.similarity import cosine_similarity, paired_cosine_similarity, tolerances
from bellm.types import Vectors

HERE = Path(__file__).parent
SHADES = (("  ", "grey15"), ("░░", "grey30"), ("▒▒", "orange4"), ("▓▓", "dark_orange3"), ("██", "gold1"))


def main() -> None:
    """Embed, compare, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="Hub id, folder, GGUF file or alias")
    parser.add_argument("--bidirectional", default="last:8", help="which layers look both ways")
    parser.add_argument("--prompt", default="prompteol", help="prompt name or template with {text}")
    parser.add_argument("--pooling", default="last", help="last, mean, mean-text, weighted-mean, first, max")
    parser.add_argument("--input", type=Path, default=HERE / "sentences.txt", help="one sentence a line")
    parser.add_argument("--output", type=Path, default=Path("demo") / "vectors.npy", help="where the vectors go")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    console = Console()

    with console.status(f"loading {options.model}, some seconds"), warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        encoder = Encoder.from_pretrained(
            options.model, bidirectional=options.bidirectional, prompt=options.prompt, pooling=options.pooling
        )
    sentences = options.input.read_text(encoding="utf-8").splitlines()
    vectors = encoder.encode(sentences)
    with encoder.causal():
        causal = encoder.encode(sentences)

    console.print(nearest_pairs(sentences, vectors))
    console.print(heat_map(vectors))
    console.rule("what was opened")
    console.print(escape(repr(encoder)), highlight=False)
    console.print(measured_layers(encoder))
    console.rule("what that changed against the causal model")
    console.print(change(vectors, causal))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    np.save(options.output, vectors)
    console.print(f"\n{len(vectors)} vectors of {encoder.embedding_dim} float32 numbers written to {options.output}")


def nearest_pairs(sentences: list[str], vectors: Vectors, count: int = 6) -> Table:
    """The most similar pairs of sentences."""
    similarity = cosine_similarity(vectors, vectors)
    left, right = np.triu_indices(len(vectors), k=1)
    table = Table("cosine", "one", "other", title="Nearest pairs", title_justify="left")
    for pair in np.argsort(-similarity[left, right])[:count]:
        a, b = left[pair], right[pair]
        table.add_row(f"{similarity[a, b]:.3f}", f"{a + 1}. {escape(sentences[a])}", f"{b + 1}. {escape(sentences[b])}")
    return table


def heat_map(vectors: Vectors) -> Text:
    """Cosine of every sentence with every other; shades follow ranks, so that every map has contrast."""
    similarity = cosine_similarity(vectors, vectors)
    others = np.sort(similarity[~np.eye(len(vectors), dtype=bool)])
    steps = others[np.linspace(0, len(others) - 1, len(SHADES) + 1).astype(int)][1:-1]
    picture = Text("\nSimilarity of all sentences, dark to bright\n", style="italic")
    for number, row in enumerate(similarity, start=1):
        picture.append(f"{number:3} ", style="dim")
        for value in row:
            picture.append(*SHADES[int(np.searchsorted(steps, value))])
        picture.append("\n")
    return picture


def measured_layers(encoder: Encoder) -> str:
    """Which layers were measured to see the future."""
    limit = tolerances(encoder.model.dtype).leakage
    measured = measure_leakage(encoder.model)
    seeing = [layer for layer, leakage in enumerate(measured) if leakage.future > limit]
    blind = [layer for layer, leakage in enumerate(measured) if leakage.future <= limit]
    return (
        f"Measured: later tokens move earlier ones in layers {format_layers(seeing)}, "
        f"and not in layers {format_layers(blind)}."
    )


def change(vectors: Vectors, causal: Vectors) -> str:
    """How far the vectors moved, and whose nearest neighbour is another one now."""
    moved = paired_cosine_similarity(vectors, causal)
    now, before = (np.argmax(cosine_similarity(v, v) - 2 * np.eye(len(v)), axis=1) for v in (vectors, causal))
    return (
        f"The same sentence, open against causal: cosine {moved.mean():.4f} on average, {moved.min():.4f} at least. "
        f"{int((now != before).sum())} of {len(vectors)} sentences have another nearest neighbour."
    )


if __name__ == "__main__":
    main()
