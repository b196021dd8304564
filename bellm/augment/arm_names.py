"""Names of arms: what may stand beside the text. Nothing here needs a model."""

from collections.abc import Sequence
from typing import Literal, get_args

from bellm.errors import BellmError, did_you_mean

ArmName = Literal["hint", "sp-input", "sp-output", "amr", "receipt", "retrieval"]
"""hint: SENSE's sentence; sp-input and sp-output: its rivals, a parse from a file or one that the model writes; amr:
AMRCoT; receipt: SuperContext; retrieval: the nearest training items as demonstrations, or passages of a corpus."""

GRAPH_ARMS = ("sp-input", "amr")

PLAIN, PROBE = "plain", "probe"
"""Arms that are always there: the prompt without side information, and the small model without the language model."""


def parse_arms(names: str | Sequence[str]) -> tuple[ArmName, ...]:
    """Names of arms, each once: a list, or text with commas.

    Raises:
        BellmError: One is not known, or there is none.
    """
    given = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    known: dict[str, ArmName] = {name: name for name in get_args(ArmName)}
    for name in given:
        if name not in known:
            raise BellmError(f"{name!r} is no side information.{did_you_mean(name, known)} Give {', '.join(known)}.")
    if not given:
        raise BellmError(f"No side information is asked for. Give some of {', '.join(known)}.")
    return tuple(dict.fromkeys(known[name] for name in given))
