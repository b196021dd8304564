"""The house style: a page from a template of its own and what all pages share.

No plotting library: figures are some SVG in the template, so that a page weighs a tenth of what the lightest library
does, is readable without scripts, prints, and follows the reader's colours.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from bellm.io import atomic
from bellm.report.formatting import format_tick

_HERE = Path(__file__).parent


def render_page(room: Path, filters: Iterable[Callable[..., str]], **found: Any) -> str:
    """Fill in the template of a room.

    Args:
        room: Folder of `page.html.jinja`, which extends `base.html.jinja`, and of `page.css` and `page.js`.
        filters: What the template calls by name, besides `tick`.
        found: What the template names; of it the base wants a `heading`, and `results` for programs.
    """
    house = Environment(
        loader=FileSystemLoader([room, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    house.filters |= {each.__name__: each for each in (format_tick, *filters)}
    style, script = (
        Markup("\n").join(_as_it_is(place) for place in (_HERE / f"base.{kind}", room / f"page.{kind}"))
        for kind in ("css", "js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = house.get_template("page.html.jinja")
    return template.render(**found, style=style, script=script, script_hash=digest)


def json_for_script(value: object) -> Markup:
    """JSON that can stand in the page, whatever the texts in it say."""
    return htmlsafe_json_dumps(value, ensure_ascii=False)


def write_html(page: str, file: Path) -> None:
    """Write a page, whole or not at all.

    Raises:
        SourceError: The disk refuses; a page that was there before stays.
    """
    # Half a character cannot be written as UTF-8; a question mark in its place is better than no page.
    atomic.write_bytes(file, page.encode("utf-8", "replace"))


def _as_it_is(file: Path) -> Markup:
    return Markup(file.read_text(encoding="utf-8"))
