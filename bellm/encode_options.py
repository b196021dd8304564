"""Keywords that people know from sentence-transformers, read as what `Encoder.encode` does."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, get_args

import torch

from bellm.config import setting_names
from bellm.errors import BellmError
from bellm.hints import ENCODE_HINTS, SETTING_HINTS, unknown_names
from bellm.prompts import Prompt
from bellm.types import InputType


class EncodeHabits(TypedDict, total=False):
    """Keywords of sentence-transformers that `Encoder.encode` takes besides its own; None stands for none."""

    show_progress_bar: bool | None
    """`progress`."""
    prompt_name: str | None
    """`input_type`: `query` or `document`."""
    task: str | None
    """`input_type`: `query` or `document`."""
    prompt: str | Prompt | None
    """Another prompt for this call, as `Encoder.replace` takes it."""
    truncate_dim: int | None
    """The first so many numbers, for this call."""
    normalize: bool | None
    """Vectors of length 1, for this call."""
    normalize_embeddings: bool
    """As `normalize`; False leaves it to the encoder's settings."""
    convert_to_numpy: bool
    """True, as it is without `convert_to_tensor`."""
    precision: Literal["float32"]
    output_value: Literal["sentence_embedding"]
    device: str | torch.device | None
    """Where the encoder is."""


class EncodeOptions(EncodeHabits, total=False):
    """What `Encoder.encode_query` and `encode_document` hand on to `encode`."""

    max_batch_tokens: int | None
    batch_size: int | None
    progress: bool | None


@dataclass(frozen=True)
class EncodeCall:
    """What a call of `encode` asks for."""

    input_type: InputType
    progress: bool | None
    settings: Mapping[str, Any]
    """Those that hold for this call alone."""


_ONLY = {
    "precision": ("float32", "vectors are float32. Write vectors.astype(...); bellm embed --precision writes others."),
    "output_value": ("sentence_embedding", "an encoder gives a vector a text; encoder.model gives states of tokens."),
    "convert_to_numpy": (True, "vectors are an array of NumPy. Write convert_to_tensor=True for a tensor."),
}
"""Keywords of which one value is what bellm does, and what it does."""


def read_habits(
    habits: Mapping[str, Any], input_type: InputType, progress: bool | None, device: torch.device, has_tensors: bool
) -> EncodeCall:
    """Read the keywords of a call; `has_tensors` says that it gives a tensor, and `device` where the encoder is.

    Raises:
        BellmError: A keyword is not known, or asks for what an encoder does not do; it says what to write.
    """
    known = EncodeOptions.__annotations__
    if unknown := [name for name in habits if name not in known]:
        aliases = SETTING_HINTS | {name: name for name in setting_names()}
        hints = {name: f"encoder.replace({setting}=...)" for name, setting in aliases.items()}
        own = ("input_type", "convert_to_tensor")
        raise unknown_names(unknown, "keyword of encode", (*own, *known), hints | ENCODE_HINTS)
    given = {name: value for name, value in habits.items() if value is not None}
    if has_tensors:
        given.pop("convert_to_numpy", None)
    for name, (only, why) in _ONLY.items():
        if given.get(name, only) != only:
            raise BellmError(f"{name}={given[name]!r}: {why}")
    _check_device(given.get("device"), device)
    settings: dict[str, Any] = {name: given[name] for name in ("prompt", "truncate_dim", "normalize") if name in given}
    if given.get("normalize_embeddings"):
        settings["normalize"] = True
    call = EncodeCall(input_type, given.get("show_progress_bar", progress), settings)
    for name in ("prompt_name", "task"):
        if name in given:
            call = replace(call, input_type=_read_input_type(name, given[name], call.input_type))
    return call


def read_fixed_habits(
    habits: Mapping[str, Any], input_type: InputType, progress: bool | None, device: torch.device
) -> EncodeCall:
    """As `read_habits`, for what gives arrays alone and has settings that were fixed before, as a pool of processes."""
    given = dict(habits)
    if given.pop("convert_to_tensor", False):
        raise BellmError("convert_to_tensor=True: vectors are an array of NumPy here. Write torch.from_numpy(vectors).")
    call = read_habits(given, input_type, progress, device, has_tensors=False)
    if call.settings:
        name = next(iter(call.settings))
        raise BellmError(f"{name} does not change for one call here. Write encoder.replace({name}=...) beforehand.")
    return call


def _read_input_type(name: str, value: Any, input_type: InputType) -> InputType:
    if value not in get_args(InputType):
        raise BellmError(
            f"{name}={value!r} is not one of {', '.join(get_args(InputType))}, which choose among the prompt's "
            "templates. Write prompt='... {text} ...' for another prompt."
        )
    if input_type not in ("text", value):
        raise BellmError(f"{name}={value!r} contradicts input_type={input_type!r}. Give one of them.")
    return value  # type: ignore[no-any-return]


def _check_device(given: Any, device: torch.device) -> None:
    if isinstance(given, list | tuple):
        raise BellmError("device is a list. Write with EncoderPool(encoder, devices) as pool: pool.encode(texts).")
    if given is None:
        return
    try:
        asked = torch.device(given)
    except (RuntimeError, TypeError) as error:
        raise BellmError(f"device={given!r} is not known to torch. Give none, or the encoder's: {device}.") from error
    if asked.type != device.type or asked.index not in (None, device.index or 0):
        raise BellmError(f"device={str(asked)!r}: the encoder is on {device}. Write encoder.to({str(asked)!r}) first.")
