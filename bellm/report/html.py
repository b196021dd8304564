"""Render a page: one file of HTML that requests nothing, from a template and the style and script of all pages.

No plotting library: figures are SVG that macros.html.jinja draws, so that a page weighs a tenth of what the lightest
library does, is readable without scripts, prints, and follows the reader's colors.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bellm.io import atomic
from bellm.report import formatting

_HERE = Path(__file__).parent
_FILTERS = ("format_interval", "format_p_value", "format_points", "shorten", "significance_mark")


def render_page(template: Path, **content: Any) -> str:
    """Fill in a template that extends `base.html.jinja`; in it the functions of `formatting` are filters by their name.

    Args:
        template: A file, `*.html.jinja`.
        content: What the template names; of it the base wants a `heading`, and `results` for programs.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, _HERE]),
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
    return environment.get_template(template.name).render(**content, style=style, script=script, script_hash=digest)


def write_html(page: str, path: Path) -> None:
    """Write a page, whole or not at all.

    Raises:
        SourceError: The disk refuses; a page that was there before stays.
    """
    # Half a character cannot be written as UTF-8; a question mark in its place is better than no page.
    atomic.write_bytes(path, page.encode("utf-8", "replace"))
