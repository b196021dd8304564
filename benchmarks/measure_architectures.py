"""Every decoder architecture of the catalogue, tiny and random, through the doctor: writes docs/architectures.md.

For each architecture and attention backend the upper half of its attention layers is opened, and measured in float32.
"""

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import tiny
import torch
import transformers
from rich.progress import track

from bellm.backbone.architecture import get_layers
from bellm.backbone.attention import open_layers
from bellm.backbone.leakage import check_open_layers
from bellm.doctor import Check, examine
from bellm.errors import LayerError

QUICK = ("llama", "gemma2", "gpt2", "gpt_neo", "stablelm", "qwen3_next", "qwen3_moe", "llama4_text")

COLUMNS = {
    "no open layer equals the plain model": "K=0",
    "all open equals transformers' switch": "all open = transformers",
    "open layers, and only they, see the future": "only open layers leak",
    "padding is never attended": "padding",
    "alone equals in a batch": "alone = batch",
    "left padding equals right padding": "left = right",
    "order does not matter": "order",
    "eager equals sdpa": "eager = sdpa",
    "packed equals padded": "packed = padded",
}


@dataclass(frozen=True)
class Row:
    """One architecture on one backend."""

    architecture: str
    backend: str
    kinds: str
    parallel: bool
    checks: tuple[Check, ...]
    refused: str = ""

    @property
    def failed(self) -> bool:
        """Whether a check failed, rather than the model being refused with a reason."""
        return any(check.status == "fail" for check in self.checks)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"only {', '.join(QUICK)}")
    parser.add_argument("--json", type=Path, help="also write every measured number here")
    parser.add_argument("--markdown", type=Path, help="write the page here instead of printing it")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    rows = [
        measure(name, backend)
        for name in track(QUICK if options.quick else sorted(tiny.ARCHITECTURES), "architectures")
        for backend in ("eager", "sdpa")
        if not (backend == "sdpa" and name in tiny.EAGER_ONLY)
    ]
    text = page(rows)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    else:
        print(text)
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if broken := [f"{row.architecture}/{row.backend}" for row in rows if row.failed]:
        raise SystemExit(f"failed: {', '.join(broken)}")


def measure(name: str, backend: str) -> Row:
    """Open the upper half of the attention layers and examine."""
    model = tiny.tiny(name, attention=backend)
    try:
        layers = get_layers(model)
        numbers = [layer.index for layer in layers if layer.can_open]
        upper = numbers[len(numbers) // 2 :]
        kinds = ", ".join(dict.fromkeys(layer.kind for layer in layers))
        model = open_layers(model, upper)
        check_open_layers(model)
    except LayerError as error:
        return Row(name, backend, "", False, (), str(error))
    return Row(name, backend, kinds, _runs_parallel(model, upper), examine(model, texts(), pad_id=0).checks)


def texts() -> Sequence[Sequence[int]]:
    """Token ids of four texts of different lengths."""
    draw = random.Random(0)
    return [[draw.randrange(3, 99) for _ in range(length)] for length in (9, 6, 11, 1)]


def page(rows: Sequence[Row]) -> str:
    """The page of docs/architectures.md."""
    measured = [row for row in rows if not row.refused]
    refused = [row for row in rows if row.refused]
    names = sorted({row.architecture for row in measured})
    exact = sum(_check(row, "all open equals transformers' switch").value == 0 for row in measured)
    return "\n".join(
        [
            "# Architectures",
            "",
            "Written by `make docs` (benchmarks/measure_architectures.py) on "
            f"transformers {transformers.__version__}, torch {torch.__version__.partition('+')[0]}, CPU, float32.",
            "",
            f"**{len(names)} architectures open, in {len(measured)} combinations with an attention backend**; "
            f"{len(refused)} combinations are refused with a reason. Where sdpa is missing, transformers has none. "
            "Each is a tiny random model (benchmarks/tiny.py) of the real modelling code; the upper half of its "
            "attention layers is open. Columns:",
            "",
            "- **K=0**: largest difference to the plain model when no layer is open.",
            "- **all open = transformers**: difference to transformers' own `config.is_causal=False`, texts alone "
            f"(0 exactly in {exact} of {len(measured)}), or why there is none to compare with. Windows are set one "
            "token narrower on that side: its bidirectional window reaches W tokens, a causal one W-1.",
            "- **only open layers leak**: largest change that a later token causes at an earlier one in a *closed* "
            "layer; that every open layer does see the future is part of the same check.",
            "- **padding, alone = batch, left = right, order, eager = sdpa, packed = padded**: largest relative "
            "difference between states (vectors, in the last case) that ought to be equal; 1e-5 is allowed. Where "
            "the last column has no number `encode` runs padded batches, for the reason given below.",
            "- **parallel**: whether the parallel variant runs as well.",
            "",
            f"| architecture | backend | layers | {' | '.join(COLUMNS.values())} | parallel |",
            f"|---|---|---|{'---|' * len(COLUMNS)}---|",
            *(_line(row) for row in measured),
            "",
            "## Refused",
            "",
            *(f"- `{row.architecture}`, {row.backend}: {row.refused}" for row in refused),
            *(f"- `{name}`: no attention layers at all." for name in tiny.NO_ATTENTION),
            "",
            "## Remarks",
            "",
            *_remarks(measured),
            "",
        ]
    )


def _line(row: Row) -> str:
    cells = [_cell(_check(row, name)) for name in COLUMNS]
    cells = [row.architecture, row.backend, row.kinds, *cells, "yes" if row.parallel else "no"]
    return f"| {' | '.join(cells)} |"


def _cell(check: Check) -> str:
    if check.status == "skip":
        return "-"
    number = "0" if check.value == 0 else f"{check.value:.0e}"
    return {"pass": number, "warn": f"{number} (upstream)", "fail": f"**{number}**"}[check.status]


def _remarks(rows: Iterable[Row]) -> list[str]:
    """Why a cell is not a plain number: each reason once, with the architectures it holds for."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for check in row.checks:
            if check.status in ("skip", "warn", "fail"):
                reasons.setdefault(f"{COLUMNS[check.name]}: {check.finding}", []).append(
                    f"{row.architecture}/{row.backend}"
                )
    return [f"- {reason} ({', '.join(names)})" for reason, names in sorted(reasons.items())]


def _check(row: Row, name: str) -> Check:
    return next(check for check in row.checks if check.name == name)


def _runs_parallel(model: transformers.PreTrainedModel, numbers: Sequence[int]) -> bool:
    try:
        branched = open_layers(model, numbers, variant="parallel")
        check_open_layers(branched)
    except LayerError:
        return False
    return True


if __name__ == "__main__":
    main()
