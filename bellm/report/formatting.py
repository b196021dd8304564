"""Numbers and facts as a page says them."""

from collections.abc import Mapping


def format_tick(value: float, *, signed: bool = False) -> str:
    """The number at a tick, as short as it gets.

    >>> tick(20.0, signed=True), tick(0.0, signed=True), tick(0.5)
    ('+20', '0', '0.5')
    """
    return f"{value:{'+' if signed and value else ''}g}".replace("-", "\N{MINUS SIGN}")


def format_metadata(facts: Mapping[str, object]) -> dict[str, str]:
    """Facts by name, both for people.

    >>> in_words({"open_layers": [3, 5], "window": None, "versions": {"bellm": "1.0"}})
    {'open layers': '3, 5', 'window': 'none', 'versions': 'bellm 1.0'}
    """
    return {name.replace("_", " "): _words(value) for name, value in facts.items()}


def _words(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        value = [f"{name} {_words(part)}" for name, part in value.items()]
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value)) or None
    return "none" if value is None else str(value)
