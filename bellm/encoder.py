"""The Encoder: texts in, vectors out."""

import copy
import dataclasses
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bellm import layer_spec, prompts, saving
from bellm.backbone import loading
from bellm.backbone.architecture import count_layers, get_layers
from bellm.backbone.attention import causal_copy, open_layers
from bellm.backbone.leakage import check_open_layers, sample_token_ids
from bellm.backbone.states import hidden_size, input_device
from bellm.config import EncoderConfig
from bellm.engine.embedding import EncodeResult, embed_chunks, embed_tokens
from bellm.engine.packing_check import check_packing
from bellm.engine.plan import chunk_texts
from bellm.engine.tokenization import Tokens, fallback_token_id, tokenize, warn_truncated
from bellm.errors import BellmError, NoOpWarning, PromptError, TruncationWarning
from bellm.io.atomic import atomic_directory
from bellm.progress import progress_bar
from bellm.prompts import Prompt
from bellm.tensors.similarity import normalize_rows as unit_length
from bellm.types import InputType, PoolingName, Variant, Vectors, Window
from bellm.version import __version__

logger = logging.getLogger(__name__)

_causal: ContextVar[dict[int, PreTrainedModel]] = ContextVar("causal", default={})  # noqa: B039 - never mutated

_MANY = 512  # From here on a person at a terminal wants a progress bar.


class Encoder:
    """A decoder-only language model that gives one vector for a text.

    Make one with `Encoder.from_pretrained`; derive another on the same weights with `replace`.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: EncoderConfig, name: str
    ) -> None:
        """Wrap an open model; `from_pretrained` and `replace` do this for you."""
        self._model = model
        self.tokenizer = tokenizer
        self.config = config
        self.name = name

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | PreTrainedModel,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        bidirectional: str | Sequence[int] | None = None,
        variant: Variant | None = None,
        window: Window | None = None,
        prompt: str | Prompt | None = None,
        pooling: PoolingName | None = None,
        layer: int | None = None,
        max_tokens: int | None = None,
        dtype: str = "auto",
        device: str = "auto",
        attention: str = "auto",
        trust_remote_code: bool = False,
        verify: bool = True,
    ) -> "Encoder":
        """Load a model and open the chosen layers.

        A folder or Hub repository that `save_pretrained` or `push_to_hub` wrote comes back as it was saved, checked by
        its fingerprint; arguments given here are applied after that check. For any other source, None means the
        default in brackets. A loaded model is left untouched: the encoder shares its weights.

        Args:
            source: Hub id, folder, `.gguf` file, alias (`smollm2`), or a loaded transformers model.
            tokenizer: The tokenizer of a loaded model.
            bidirectional: Which layers look both ways: `none`, `all`, `last:K`, `first:K`, `every:K`, `0-7`,
                `3,5,28-29`, or layer numbers ("none").
            variant: `sequential` opens layers in the stack; `parallel` runs them as a branch of their own on the
                input embeddings, the paper's literal equation ("sequential").
            window: Whether opened sliding-window layers `keep` their window or `open` it ("keep").
            prompt: A name from `bellm.prompts.PROMPTS`, `instruct:TASK`, `chat` for the tokenizer's own chat
                template, or a template with a `{text}` slot ("prompteol").
            pooling: last, mean, mean-text (without the prompt's tokens), weighted-mean, first or max ("last").
            layer: The state to pool: 0 the embeddings, k after layer k, -1 the final one (-1).
            max_tokens: Longest input, prompt included; longer texts are cut and counted (the model's limit).
            dtype: `float32`, `bfloat16`, `float16`, or `auto`: as saved, else bfloat16 where the hardware is fast at
                it, else float32.
            device: A torch device or `auto`.
            attention: `eager`, `sdpa`, `flash_attention_2`, `flex_attention`, or `auto`.
            trust_remote_code: Whether the source may bring Python code of its own.
            verify: Measure that the open layers, and only they, see the future.

        Raises:
            BellmError: What came, what is allowed and what to do, in one line.

        Warns:
            NoOpWarning: The open layers cannot change the vectors, or some chosen layers have no attention.
        """
        choices: dict[str, Any] = {
            "bidirectional": bidirectional,
            "variant": variant,
            "window": window,
            "prompt": prompt,
            "pooling": pooling,
            "layer": layer,
            "max_tokens": max_tokens,
        }
        given = {name: choice for name, choice in choices.items() if choice is not None}
        options: dict[str, Any] = {
            "tokenizer": tokenizer,
            "device": device,
            "attention": attention,
            "trust_remote_code": trust_remote_code,
        }
        place = None if isinstance(source, PreTrainedModel) else saving.find_saved(str(source))
        if place is None:
            loaded = loading.load_pretrained(source, dtype=dtype, **options)
            limit = loading.max_positions(loaded.model, loaded.tokenizer)
            start = EncoderConfig(prompt=prompts.PROMPTS["prompteol"], pooling="last", max_tokens=limit)
            plain = cls(causal_copy(loaded.model).eval(), loaded.tokenizer, start, loaded.name)
            encoder = plain.replace(**given, verify=verify)
        else:
            record = saving.read_saved(place)
            loaded = saving.load_saved(place, record, dtype=record.dtype if dtype == "auto" else dtype, **options)
            encoder = cls._open(loaded.model, loaded.tokenizer, record.config, record.base_model, verify=verify)
            saving.check_fingerprint(record, encoder.fingerprint(), encoder.dtype_name, str(source))
            encoder = encoder.replace(**given, verify=verify) if given else encoder
        logger.info("loaded %r", encoder)
        return encoder

    def replace(
        self,
        *,
        bidirectional: str | Sequence[int] | None = None,
        variant: Variant | None = None,
        window: Window | None = None,
        prompt: str | Prompt | None = None,
        pooling: PoolingName | None = None,
        layer: int | None = None,
        max_tokens: int | None = None,
        verify: bool = True,
    ) -> "Encoder":
        """Give an encoder on the same weights with other settings; this one stays as it is.

        Arguments are those of `from_pretrained`; None keeps what this encoder has.
        """
        plain = {"variant": variant, "window": window, "pooling": pooling, "layer": layer, "max_tokens": max_tokens}
        changes: dict[str, Any] = {name: choice for name, choice in plain.items() if choice is not None}
        if prompt is not None:
            changes["prompt"] = _prompt(prompt, self.tokenizer)
        if bidirectional is not None:
            changes["bidirectional"] = self._openable(layer_spec.parse_layers(bidirectional, self.num_layers))
        config = dataclasses.replace(self.config, **changes)
        self._refuse_misfits(config)
        return self._open(self.model, self.tokenizer, config, self.name, verify=verify)

    def encode(
        self,
        texts: Sequence[str],
        *,
        max_batch_tokens: int | None = None,
        normalize: bool = False,
        progress: bool | None = None,
    ) -> Vectors:
        """Embed texts, in their order.

        An empty text is its prompt alone; without a prompt it is the tokenizer's BOS (or EOS) token.

        Args:
            texts: Any number of texts; none gives shape (0, width).
            max_batch_tokens: Most tokens in one forward pass; None takes what suits the hardware.
            normalize: Scale every vector to length 1.
            progress: Show a progress bar; None shows it for long work at a terminal.

        Returns:
            Float32 array of shape (len(texts), width).

        Raises:
            BellmError: `texts` is not a list of strings, or the prompt leaves no room for text.

        Warns:
            TruncationWarning: Texts were cut to `max_tokens`; the prompt never is.
        """
        return self._encode(texts, "text", max_batch_tokens, normalize, progress)

    def encode_query(
        self,
        texts: Sequence[str],
        *,
        max_batch_tokens: int | None = None,
        normalize: bool = False,
        progress: bool | None = None,
    ) -> Vectors:
        """Embed queries, with the prompt's query template where it has one; see `encode`."""
        return self._encode(texts, "query", max_batch_tokens, normalize, progress)

    def encode_document(
        self,
        texts: Sequence[str],
        *,
        max_batch_tokens: int | None = None,
        normalize: bool = False,
        progress: bool | None = None,
    ) -> Vectors:
        """Embed documents, with the prompt's document template where it has one; see `encode`."""
        return self._encode(texts, "document", max_batch_tokens, normalize, progress)

    def encode_with_stats(
        self,
        texts: Sequence[str],
        *,
        input_type: InputType = "text",
        max_batch_tokens: int | None = None,
        normalize: bool = False,
        progress: bool = False,
    ) -> EncodeResult:
        """Embed texts and count their tokens and those that were cut, without a warning; see `encode`."""
        check_texts(texts)
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise BellmError(f"max_batch_tokens={max_batch_tokens} is too small: give at least 1.")
        template = self.config.prompt.template_for(input_type)
        model = self.model
        rows = (tokenize(self.tokenizer, part, template, self.config.max_tokens) for part in chunk_texts(texts))
        with progress_bar(len(texts), unit="text", shown=progress) as done:
            each = partial(
                embed_tokens,
                model,
                packed=check_packing(model).twin if texts else None,
                pooling=self.config.pooling,
                layer=self.config.layer,
                max_batch_tokens=max_batch_tokens,
                pad_id=fallback_token_id(self.tokenizer),
                done=done,
            )
            encoded = embed_chunks(rows, each, self.embedding_dim)
        return dataclasses.replace(encoded, vectors=unit_length(encoded.vectors)) if normalize else encoded

    def tokenize(self, texts: Sequence[str], input_type: InputType = "text") -> Tokens:
        """Token ids as the model gets them, with the count of texts that were cut."""
        template = self.config.prompt.template_for(input_type)
        return tokenize(self.tokenizer, texts, template, self.config.max_tokens)

    @contextmanager
    def causal(self) -> Iterator[PreTrainedModel]:
        """Give back the plain causal model on the same weights, for generation.

        Inside the block `encoder.model` is that model too, in this thread alone, and `encode` gives the causal
        baseline. Hand the model that is yielded to threads of your own.
        """
        plain = causal_copy(self._model)
        token = _causal.set({**_causal.get(), id(self): plain})
        try:
            yield plain
        finally:
            _causal.reset(token)

    def fingerprint(self) -> Vectors:
        """Vectors of a few fixed texts, as texts and as queries: what tells this encoder from any other."""
        texts = saving.FINGERPRINT_TEXTS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            return np.concatenate([self.encode(texts), self.encode_query(texts)])

    def save_pretrained(self, path: str | Path, *, notes: str = "") -> None:
        """Write weights (safetensors), tokenizer, settings and fingerprint to a new folder.

        Of an encoder with adapters that are not merged only these are written: loading it takes the base model too, and
        merges them. So does saving, in a copy, because that is what the fingerprint has to be of.

        Args:
            path: The folder.
            notes: Markdown for the end of the model card.

        Raises:
            SourceError: Something is there already, or the disk refuses.
        """
        loaded = self
        if hasattr(self._model, "peft_config"):
            from bellm.backbone import adapters  # It needs peft, which brought these.

            loaded = self.replace(verify=False)
            loaded.model = adapters.merge_adapters(copy.deepcopy(self._model))
        record = saving.SavedEncoder(self.config, self.name, self.dtype_name, self.num_layers, loaded.fingerprint())
        with atomic_directory(Path(path)) as draft:
            saving.write_saved(draft, causal_copy(self._model), self.tokenizer, record, __version__, notes)

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Save to a Hub repository, made if it is not there; returns the commit's address.

        Raises:
            SourceError: The Hub refuses.
        """
        with tempfile.TemporaryDirectory() as parent:
            self.save_pretrained(Path(parent) / "encoder")
            return saving.push_folder(Path(parent) / "encoder", repo_id, private=private, token=token)

    @property
    def model(self) -> PreTrainedModel:
        """The model as it embeds, with open layers; the plain one inside `causal()`."""
        return _causal.get().get(id(self), self._model)

    @model.setter
    def model(self, model: PreTrainedModel) -> None:
        self._model = model

    @property
    def batching_mode(self) -> str:
        """How texts go through the model: `packed` (no padding, shared beginnings once), or `padded` and why."""
        proof = check_packing(self.model)
        return "packed" if proof.twin else f"padded: {proof.reason}"

    @property
    def embedding_dim(self) -> int:
        """Width of the vectors."""
        return hidden_size(self.model)

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return count_layers(self.model)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return input_device(self.model)

    @property
    def dtype_name(self) -> str:
        """Dtype of the weights: float32, bfloat16 or float16."""
        return str(self.model.dtype).removeprefix("torch.")

    def __repr__(self) -> str:
        """Say everything that decides the vectors, in one line."""
        config = self.config
        return (
            f"Encoder({self.name}, open layers {layer_spec.format_layers(config.bidirectional)} of {self.num_layers} "
            f"({config.variant}, windows {config.window}), prompt {config.prompt.name}, pooling "
            f"{config.pooling}, layer {config.layer}, at most {config.max_tokens} tokens, {self.embedding_dim} "
            f"dimensions, {self.dtype_name} on {self.device})"
        )

    @classmethod
    def _open(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: EncoderConfig,
        name: str,
        *,
        verify: bool,
    ) -> "Encoder":
        layers = config.bidirectional
        model = open_layers(model, layers, variant=config.variant, window=config.window)
        encoder = cls(model, tokenizer, config, name)
        reason = layer_spec.no_op_reason(
            layers,
            num_layers=encoder.num_layers,
            variant=config.variant,
            pooling=config.pooling,
            layer=config.layer,
        )
        if reason:
            warnings.warn(reason, NoOpWarning, stacklevel=3)
        if verify:
            check_open_layers(model, sample_token_ids(model))
        return encoder

    def _openable(self, chosen: tuple[int, ...]) -> tuple[int, ...]:
        layers = get_layers(self.model)
        closed = [layers[number] for number in chosen if not layers[number].can_open]
        if closed and len(closed) < len(chosen):
            warnings.warn(
                f"Layers {layer_spec.format_layers([layer.number for layer in closed])} have no attention to open "
                f"({', '.join(sorted({layer.kind for layer in closed}))}) and stay causal.",
                NoOpWarning,
                stacklevel=3,
            )
        return tuple(number for number in chosen if layers[number].can_open) if len(closed) < len(chosen) else chosen

    def _refuse_misfits(self, config: EncoderConfig) -> None:
        depth = self.num_layers
        if not -depth - 1 <= config.layer <= depth:
            raise BellmError(
                f"layer={config.layer} does not exist: the model has states 0 (embeddings) to {depth}, or -1 to "
                f"{-depth - 1} from the end."
            )
        limit = loading.max_positions(self.model, self.tokenizer)
        if config.max_tokens > limit:
            raise BellmError(f"max_tokens={config.max_tokens} is more than the model's {limit} positions.")

    def _encode(
        self,
        texts: Sequence[str],
        input_type: InputType,
        max_batch_tokens: int | None,
        normalize: bool,
        progress: bool | None,
    ) -> Vectors:
        encoded = self.encode_with_stats(
            texts,
            input_type=input_type,
            max_batch_tokens=max_batch_tokens,
            normalize=normalize,
            progress=len(texts) >= _MANY and sys.stderr.isatty() if progress is None else progress,
        )
        warn_truncated(encoded.num_truncated, len(texts), self.config.max_tokens)
        return encoded.vectors


def _prompt(prompt: str | Prompt, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    if prompt != "chat":
        return prompts.resolve_prompt(prompt)
    if not tokenizer.chat_template:
        raise PromptError("prompt='chat' was asked for, but the tokenizer has no chat template.")
    message = [{"role": "user", "content": prompts.SLOT}]
    template = str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))
    # The tokenizer adds its BOS again.
    bos = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id] and str(tokenizer.bos_token)
    return Prompt("chat", template.removeprefix(bos) if bos else template)


def check_texts(texts: Sequence[str]) -> None:
    """Make sure that these are texts.

    Raises:
        BellmError: `texts` is one string, or holds what is no string or half a character.
    """
    if isinstance(texts, str):
        raise BellmError("encode takes a list of texts, and got one string. Write encode([text]).")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise BellmError(f"texts[{number}] is {type(text).__name__}, not a string.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise BellmError(
                f"texts[{number}] holds half a character at {error.start}. Repair its decoding."
            ) from error
