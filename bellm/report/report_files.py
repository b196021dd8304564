"""The folder of a report, and its page: one file of HTML that requests nothing.

No plotting library: figures are SVG that macros.html.jinja draws, so that a page weighs a tenth of what the lightest
library does, is readable without scripts, prints, and follows the reader's colors.
"""

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bellm.errors import SourceError
from bellm.io import atomic
from bellm.report import formatting

_HERE = Path(__file__).parent
_FILTERS = ("format_interval", "format_p_value", "format_points", "shorten", "significance_mark")


def check_results_folder(
    results: Path, models: Sequence[str], refusal: str, *, holds: str, beside: str = "", force: bool = False
) -> None:
    """Make sure that the folder of a report can be made, and that it holds no report on other models.

    Nothing is written: a mistake that shows later leaves no empty folder behind.

    Args:
        results: The JSON file of the report; its `model`, and those under `compared`, say what it is about.
        models: What the new report will be about.
        refusal: What is said of other results, with `{}` for their models.
        holds: A key of this report's results, by which it is told from that of another command.
        beside: What every report may hold besides its models.
        force: Whether these may be replaced.
    """
    folder = results.parent
    try:
        nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise SourceError(f"{nearest} is a file. Name a folder.")
        if not os.access(nearest, os.W_OK):
            raise SourceError(f"{folder} cannot be written: nothing may be made in {nearest}.")
        if force or not results.exists():
            return
        found = json.loads(results.read_text(encoding="utf-8"))
        known = [found["model"], *(run["model"] for run in found.get("compared", ()))]
        known = [model for model in known if model != beside]
        known = known if holds in found else ["another command"]
    except OSError as error:
        raise SourceError(f"{folder} cannot be written: {error.strerror or error}.") from error
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError):
        known = ["something that bellm cannot read"]
    if known != list(dict.fromkeys(models)):
        raise SourceError(f"{results} {refusal.format(', '.join(known))}")


def write_page(path: Path, template: Path, **content: Any) -> None:
    """Fill in a template that extends `base.html.jinja`, and write the page, whole or not at all.

    It may also extend a page of another package, named by its path in bellm. The functions of `formatting` are filters
    in it, by their name. What the template names comes from `content`; the base wants a `heading`, and `results` for
    programs.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _HERE, _HERE.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    environment.filters |= {name: getattr(formatting, name) for name in _FILTERS}
    environment.globals |= {"BETTER": formatting.BETTER, "WORSE": formatting.WORSE}
    style, script = (Markup((_HERE / f"page.{kind}").read_text(encoding="utf-8")) for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template(template.name).render(**content, style=style, script=script, script_hash=digest)
    # Half a character cannot be written as UTF-8; a question mark in its place is better than no page.
    atomic.write_bytes(path, page.encode("utf-8", "replace"))
