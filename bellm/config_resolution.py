"""Resolve settings against a model: layer specs to layer numbers, prompt names to templates, limits checked."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bellm.backbone import loading
from bellm.backbone.architecture import get_layers
from bellm.backbone.hooks import is_bidirectional_by_config
from bellm.config import EncoderConfig, given_settings, refuse_unknown, setting_names
from bellm.errors import BellmError, LayerError, NoOpWarning, PromptError, warn
from bellm.layer_spec import format_layers, parse_layers
from bellm.prompts import PROMPTS, SLOT, Prompt, resolve_prompt


def resolve_config(
    base: EncoderConfig | None, settings: Mapping[str, Any], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> EncoderConfig:
    """Apply settings, as users write them, to a configuration, and check that all fit the model.

    `base` holds for every setting that is not given, or given as None; without it the model is causal, unless its own
    configuration looks both ways, and pools the last token of PromptEOL's template. With a prompt that holds the text
    twice the mean over the second is the default.

    Raises:
        BellmError: A setting is unknown, or does not fit the model.

    Warns:
        NoOpWarning: Some of the chosen layers have no attention, and stay causal.
    """
    refuse_unknown(settings, setting_names())
    limit = loading.max_positions(model, tokenizer)
    native = {"bidirectional": "all"} if base is None and is_bidirectional_by_config(model) else {}
    base = base or EncoderConfig(prompt=PROMPTS["prompteol"], pooling="last", max_tokens=limit)
    changes = native | given_settings(settings)
    if "prompt" in changes:
        changes["prompt"] = _resolve_prompt(changes["prompt"], tokenizer)
        if changes["prompt"].repeats:
            changes.setdefault("pooling", "mean-text")
    if "bidirectional" in changes:
        changes["bidirectional"] = _openable(changes["bidirectional"], model)
    config = dataclasses.replace(base, **changes)
    _refuse_misfits(config, model, limit)
    return config


def _openable(spec: str | Sequence[int], model: PreTrainedModel) -> tuple[int, ...]:
    layers = get_layers(model)
    chosen = parse_layers(spec, len(layers))
    closed = [layers[number] for number in chosen if not layers[number].can_open]
    if not closed or len(closed) == len(chosen):
        return chosen
    warn(
        f"Layers {format_layers([layer.index for layer in closed])} have no attention to open "
        f"({', '.join(sorted({layer.kind for layer in closed}))}) and stay causal.",
        NoOpWarning,
    )
    return tuple(number for number in chosen if layers[number].can_open)


def _refuse_misfits(config: EncoderConfig, model: PreTrainedModel, limit: int) -> None:
    num_layers = len(get_layers(model))
    if missing := [layer for layer in config.layers if not -num_layers - 1 <= layer <= num_layers]:
        raise BellmError(
            f"layer={missing[0]} does not exist: the model has states 0 (embeddings) to {num_layers}, or -1 to "
            f"{-num_layers - 1} from the end."
        )
    if config.max_tokens > limit:
        of_tokenizer = f"tokenizer's {limit} tokens (model_max_length)"
        whose = f"model's {limit} positions" if limit == loading.max_positions(model) else of_tokenizer
        raise BellmError(f"max_tokens={config.max_tokens} is more than the {whose}.")
    if config.token_prepending and config.bidirectional:
        raise LayerError(
            f"Token Prepending is for a causal model, and layers {format_layers(config.bidirectional)} are open. Set "
            "bidirectional='none', or token_prepending=0."
        )


def _resolve_prompt(prompt: str | Prompt, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    if prompt != "chat":
        return resolve_prompt(prompt)
    if not tokenizer.chat_template:
        raise PromptError("prompt='chat' was asked for, but the tokenizer has no chat template.")
    message = [{"role": "user", "content": SLOT}]
    template = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    # The tokenizer adds its BOS again.
    bos = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id] and str(tokenizer.bos_token)
    return Prompt("chat", template.removeprefix(bos) if bos else template)
