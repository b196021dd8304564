"""EncoderConfig: the one list of settings that decide an encoder's vectors, next to its weights.

Keyword arguments, command-line options, `source?name=value`, saved encoders, model cards and reports are derived from
its fields: a new setting is one field here and one use.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import takewhile
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from bellm.errors import BellmError, SourceError, did_you_mean, refuses_changes
from bellm.hints import LOADING_HINTS, SETTING_HINTS, unknown_names
from bellm.layer_spec import format_layers, parse_layers, parse_states
from bellm.prompts import PROMPTS, Prompt, resolve_hint, resolve_prompt
from bellm.types import CenteringName, InputType, PoolingName, ReadoutName, Variant, Window

_MANY_LAYERS = 1 << 20


@refuses_changes("encoder = encoder.replace({change})")
@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Every setting of an encoder, resolved for its model."""

    bidirectional: Annotated[
        tuple[int, ...],
        "Layers that look both ways: none, all, last:K, first:K, every:K, 0-7 or 3,5,28-29; default none, "
        "or all where the model's own config looks both ways",
    ] = ()
    """Open layers, in order; empty is the causal model. Users write them in the grammar of `bellm.layer_spec`."""
    variant: Annotated[
        Variant, "sequential: open layers stay in the stack; parallel: they run as a branch of their own"
    ] = "sequential"
    window: Annotated[Window, "Opened sliding-window layers keep or open their window; default keep"] = "keep"
    prompt: Annotated[
        Prompt,
        "raw, bellm, prompteol, angle, pretended-cot, knowledge, meta-topic, meta-mood, meta-fact, meta-sense, "
        "echo, instruct, instruct:TASK, chat, or your own template with a {text} slot, or two; default prompteol",
    ]
    hint: Annotated[
        str,
        "A sentence before the prompt, for all input types: sense (SENSE, arXiv 2409.14469) or one of your own; "
        "default none",
    ] = ""
    """Users write it as `bellm.prompts.resolve_hint` reads it; the sentence itself, empty for none."""
    pooling: Annotated[
        PoolingName,
        "last, mean, mean-text, weighted-mean, first or max over the tokens; default last, "
        "or mean-text where the prompt holds the text twice",
    ]
    layer: Annotated[
        int | str,
        "State to pool: 0 embeddings, k after layer k, -1 the final one; several of length 1 side by side (-1,-6) or "
        "their mean (mean:-1,-6); default -1",
    ] = -1
    readout: Annotated[
        ReadoutName,
        "hidden: pooled states; routing: pooled routing weights of all experts in every layer of a mixture of experts; "
        "default hidden",
    ] = "hidden"
    max_tokens: Annotated[int, "Longest input with its prompt; longer texts are cut; default the model's limit"]
    token_prepending: Annotated[
        int, "Token Prepending in the first K layers of a causal model (arXiv 2412.11556); default 0, off"
    ] = 0
    centering: Annotated[
        CenteringName,
        "mean: subtract the mean vector that bellm center learned; whitening: give all directions one variance too; "
        "default none, or as learned",
    ] = "none"
    truncate_dim: Annotated[int | None, "Keep the first so many numbers of every vector (Matryoshka); default all"] = (
        None
    )
    normalize: Annotated[bool, "Scale every vector to length 1; default no"] = False

    def __post_init__(self) -> None:
        """Refuse values outside their sets."""
        for name, hint in _hints().items():
            value, choices = getattr(self, name), get_args(hint.__origin__)
            if get_origin(hint.__origin__) is Literal and value not in choices:
                near = did_you_mean(str(value), choices)
                raise SourceError(f"{name}={value!r} is not one of {', '.join(choices)}.{near}")
            kind = setting_type(name)
            if kind is not str and type(value) is not kind and not (value is None and type(None) in choices):
                raise SourceError(f"{name}={value!r} is not of type {kind.__name__}.")
        for name, least in (("max_tokens", 1), ("token_prepending", 0), ("truncate_dim", 1)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise SourceError(f"{name}={getattr(self, name)} is too small: give at least {least}.")
        object.__setattr__(self, "hint", resolve_hint(self.hint))
        if self.hint and self.prompt.name == "chat":
            raise SourceError(
                "A hint would stand before the first turn of prompt='chat'. Take another prompt, or none."
            )
        states, is_mean = parse_states(self.layer)
        written = f"{'mean:' * is_mean}{','.join(map(str, states))}"
        object.__setattr__(self, "layer", written if len(states) > 1 else states[0])  # One way of writing it.
        if self.readout == "routing" and self.layer != -1:
            raise SourceError(f"readout='routing' reads every layer that has experts: layer={self.layer} does not fit.")

    def template_for(self, input_type: InputType) -> str:
        """The template of an input type, the hint before it."""
        template = self.prompt.template_for(input_type)
        return f"{self.hint} {template}" if self.hint else template

    @property
    def layers(self) -> tuple[int, ...]:
        """States that vectors are read from."""
        return parse_states(self.layer)[0]

    @property
    def averages_layers(self) -> bool:
        """Whether a vector is the mean of several states, not these side by side."""
        return parse_states(self.layer)[1]

    def to_dict(self) -> dict[str, Any]:
        """All settings as flat JSON values, with `open_layers` as numbers besides; `from_dict` reads them back."""
        prompt = self.prompt
        return {
            **vars(self),
            "bidirectional": format_layers(self.bidirectional),
            "open_layers": list(self.bidirectional),
            "prompt": prompt.name,
            "hint": self.hint or "none",
            "template": prompt.template,
            "query_template": prompt.query,
            "document_template": prompt.document,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EncoderConfig":
        """Read what `to_dict` gave; keys of other purposes are left alone."""
        try:
            known: dict[str, Any] = {each.name: values[each.name] for each in fields(cls)}
            templates = (values[name] for name in ("template", "query_template", "document_template"))
            known["prompt"] = Prompt(known["prompt"], *templates)
            known["bidirectional"] = parse_layers(known["bidirectional"], _MANY_LAYERS)
            return cls(**known)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise SourceError(f"settings of an encoder cannot be read: {reason}.") from error

    def last_state(self, num_layers: int) -> int:
        """The last of the states that are pooled: 0 the embeddings, k after layer k."""
        return max(layer % (num_layers + 1) for layer in self.layers)

    def constant_reason(self, num_layers: int) -> str | None:
        """Say why vectors do not depend on their texts; None where they do."""
        pooled = self.last_state(num_layers)
        if self.pooling == "first" and not any(index < pooled for index in self.bidirectional):
            return (
                "pooling='first' reads a token that sees nothing behind it, as no layer below is open: vectors do not "
                "depend on the text. Open layers (last:8), or pool the last token or the mean."
            )
        if self.pooling == "last" and pooled == 0:
            return (
                f"layer={self.layer} with pooling='last' is the embedding of the last token alone: vectors do not "
                "depend on the text before it. Pool a later state, or the mean."
            )
        return None

    def no_op_reason(self, num_layers: int) -> str | None:
        """Say why vectors do not depend on their texts, or not on the open layers; None where they do.

        The last row of a causal mask already sees every token, so opening one layer changes only the rows before the
        last; these reach the last token through the next layer, and the last layer has none. In the sequential variant
        the vectors are then the causal model's; in the parallel one the open layers still leave the stack.
        """
        opened, pooled = format_layers(self.bidirectional), self.last_state(num_layers)
        effective = [index for index in self.bidirectional if index < pooled]
        if (reason := self.constant_reason(num_layers)) or not self.bidirectional:
            return reason
        alone = effective == [pooled - 1] or (self.variant == "parallel" and len(effective) == 1)
        if not effective:
            reason = (
                f"Layers {opened} are open, but the state that is pooled (layer={self.layer}) is taken below them: "
                "nothing changes. Open lower layers or pool a later state."
            )
        elif self.pooling == "last" and alone:
            reason = (
                f"Opening only layer {effective[0]} changes nothing with last-token pooling: the last token of a "
                "causal layer already sees every token. Open more layers (last:8) or pool the mean."
            )
        else:
            return None
        beside = " (The vectors are not the causal model's: a layer beside the stack is no longer in it.)"
        return reason + (beside if self.variant == "parallel" else "")

    def uncentered_digest(self) -> str:
        """Digest of the settings that decide vectors before they are centered, cut and normalized."""
        return replace(self, centering="none", truncate_dim=None, normalize=False, max_tokens=1).digest()

    def digest(self) -> str:
        """SHA-256 of the settings, hexadecimal: the same for the same settings, whoever wrote them."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def setting_names() -> tuple[str, ...]:
    """Names of all settings."""
    return tuple(each.name for each in fields(EncoderConfig))


def setting_help(name: str) -> str:
    """What a setting is, in a line for `--help`."""
    return str(_hints()[name].__metadata__[0])


def setting_type(name: str) -> type[int] | type[bool] | type[str]:
    """How a setting is written on a command line: int, bool, or str where it is parsed against the model."""
    kind = _hints()[name].__origin__
    kinds = set(get_args(kind)) - {type(None)} if get_origin(kind) is UnionType else {kind}
    return bool if kinds == {bool} else int if kinds == {int} else str


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(EncoderConfig, include_extras=True)


def parse_setting(name: str, text: str) -> Any:
    """Read the value of a setting from `name=value`."""
    refuse_unknown([name], setting_names())
    kind = setting_type(name)
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise BellmError(f"{name}={text!r} is neither true nor false.")
        return text.lower() in ("true", "1", "yes")
    try:
        return kind(text)
    except ValueError as error:
        raise BellmError(f"{name}={text!r} is no whole number.") from error


def given_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are not None, with numbers of numpy as those of Python."""
    given = {name: value for name, value in settings.items() if value is not None}
    return {name: value.tolist() if type(value).__module__ == "numpy" else value for name, value in given.items()}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings, as users write them, that no model takes; this needs none."""
    refuse_unknown(settings, setting_names())
    given = given_settings(settings)
    if "bidirectional" in given:
        given["bidirectional"] = parse_layers(given["bidirectional"], _MANY_LAYERS)
    if given.get("prompt", "chat") == "chat":  # A template of the tokenizer's.
        given["prompt"] = PROMPTS["raw"]
    given["prompt"] = resolve_prompt(given["prompt"])
    EncoderConfig(**{"pooling": "last", "max_tokens": 1, **given})


def refuse_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are no settings, and say which were meant."""
    known = list(known)
    if unknown := [name for name in names if name not in known]:
        raise unknown_names(unknown, "setting of an encoder", known, SETTING_HINTS | LOADING_HINTS)


def changed_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two records of settings, old and new value by dotted name; long texts from where they part.

    >>> changed_settings({"seed": 1, "data": [{"rows": 2}]}, {"seed": 1, "data": [{"rows": 3}]})
    {'data.0.rows': (2, 3)}
    """
    changed: dict[str, tuple[Any, Any]] = {}
    for name in {**then, **now}:
        old, new = then.get(name), now.get(name)
        if isinstance(old, list) and isinstance(new, list):
            old, new = ({str(index): item for index, item in enumerate(items)} for items in (old, new))
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changed |= {f"{name}.{inner}": pair for inner, pair in changed_settings(old, new).items()}
        elif isinstance(old, str) and isinstance(new, str) and old != new:
            same = takewhile(lambda pair: pair[0] == pair[1], zip(old, new, strict=False))
            parting = sum(1 for _ in same)
            changed[name] = (_excerpt(old, parting), _excerpt(new, parting))
        elif old != new:
            changed[name] = (old, new)
    return changed


def _excerpt(text: str, position: int, most: int = 60) -> str:
    """A text, or if it is long the part around a position."""
    start = max(0, position - most // 3) if len(text) > most else 0
    end = start + most
    return f"{'...' * (start > 0)}{text[start:end]}{'...' * (end < len(text))}"
