"""Encoder: a decoder-only language model that gives one embedding for each text."""

import copy
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, overload

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bellm import saving
from bellm.backbone import loading
from bellm.backbone.architecture import count_layers
from bellm.backbone.attention import get_open_layers, open_layers
from bellm.backbone.hooks import causal_copy, moved_copy
from bellm.backbone.leakage import check_open_layers
from bellm.backbone.packed_pass import AttentionKernel
from bellm.backbone.source_layouts import fetch_layout, has_adapters
from bellm.backbone.source_names import SETTINGS_FILE, is_hub_id
from bellm.backbone.states import input_device
from bellm.backbone.token_prepending import has_token_prepending, with_token_prepending
from bellm.config import EncoderConfig, check_settings, given_settings, setting_names
from bellm.config_resolution import resolve_config
from bellm.encode_options import EncodeHabits, EncodeOptions, read_habits
from bellm.engine import tokenization
from bellm.engine.concurrency import prefetch
from bellm.engine.embedding import EncodeResult, embed_chunks, embed_tokens, warn_degenerate
from bellm.engine.graph_encoder import GraphBackend, GraphEncoder
from bellm.engine.packing_check import check_packing
from bellm.engine.readout import Readout, check_readout, make_readout
from bellm.engine.tokenization import Tokens, fallback_token_id
from bellm.errors import BellmError, LayerError, NoOpWarning, SourceError, check_choice, warn
from bellm.hints import unknown_attribute
from bellm.io.atomic import atomic_directory
from bellm.layer_spec import format_layers
from bellm.progress import can_show_bars, progress_bar
from bellm.prompts import Rendered
from bellm.saved_encoder import FINGERPRINT_TEXTS, SavedEncoder, centered_error, check_one_encoder, read_saved
from bellm.tensors.similarity import cosine_similarity, normalize_rows, paired_cosine_similarity
from bellm.tensors.vector_statistics import VectorStatistics
from bellm.types import BackendName, CenteringName, InputType, Vectors

_causal: ContextVar[dict[int, PreTrainedModel]] = ContextVar("causal", default={})  # noqa: B039 - never mutated

_FIXED = {
    "config": "Write encoder = encoder.replace(...).",
    "model": "Write encoder = Encoder.from_pretrained(model, tokenizer=..., bidirectional=..., ...).",
    "tokenizer": "Write encoder = Encoder.from_pretrained(encoder.model, tokenizer=tokenizer, config=encoder.config).",
    "device": "Write encoder.to(device).",
    "dtype": "Write encoder.to(dtype).",
    "max_seq_length": "Write encoder = encoder.replace(max_tokens=...).",
}
"""What to write instead of setting an attribute."""

_OF_MODEL = ("bidirectional", "variant", "window", "token_prepending")  # Settings that a model is made for.
_PROGRESS_FROM = 512  # Number of texts from which a terminal or a notebook shows a progress bar.


class Encoder:
    """A decoder-only language model that gives one vector for each text.

    Load one with `Encoder.from_pretrained`; derive another on the same weights with `replace`.
    """

    tokenizer: PreTrainedTokenizerBase
    config: EncoderConfig
    _model: PreTrainedModel

    def __new__(cls, *arguments: Any, **named: Any) -> "Encoder":
        """Refuse a source, which other libraries load here."""
        if arguments and isinstance(arguments[0], str | PathLike):
            raise BellmError(f"Write Encoder.from_pretrained({str(arguments[0])!r}), which loads a model.")
        return super().__new__(cls)

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: EncoderConfig, name: str
    ) -> None:
        """Wrap a decoder that has the open layers of `config`; `name` is that of the base model."""
        vars(self).update(_model=model, tokenizer=tokenizer, config=config)
        self._tokenizers = tokenization.OwnTokenizers(tokenizer, model.get_input_embeddings().weight.shape[0])
        self.name = name
        self.source = name
        """What it was loaded from."""
        self.compression: tuple[dict[str, Any], ...] = ()
        """What was done to its weights since they were loaded from the base model, step by step; each has a summary."""
        self.statistics: VectorStatistics | None = None
        """What the setting `centering` takes from vectors, see `bellm.compress.center`."""

    @overload
    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str] | nn.Module,
        *,
        backend: Literal["torch"] = "torch",
        config: EncoderConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: str = "auto",
        device: str = "auto",
        attention: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
        device_map: Any = None,
        verify: bool = True,
        **settings: Any,
    ) -> "Encoder": ...

    @overload
    @classmethod
    def from_pretrained(
        cls, source: str | PathLike[str], *, backend: GraphBackend, num_threads: int | None = None
    ) -> GraphEncoder: ...

    @classmethod
    def from_pretrained(
        cls,
        source: str | PathLike[str] | nn.Module,
        *,
        backend: BackendName = "torch",
        config: EncoderConfig | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: str = "auto",
        device: str = "auto",
        attention: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
        device_map: Any = None,
        verify: bool = True,
        **settings: Any,
    ) -> "Encoder | GraphEncoder":
        """Load a model and open the chosen layers.

        A folder or Hub repository that `save_pretrained` or `push_to_hub` wrote comes back as it was saved, checked by
        its fingerprint; settings given here are applied after that check. A loaded model is left untouched: the encoder
        shares its weights.

        Args:
            source: Hub id (`owner/name` or `owner/name@revision`), folder, `.gguf` file, alias (`smollm2`), or a loaded
                model of transformers or PEFT. Adapters are merged into their base model; folders of
                sentence-transformers and LLM2Vec bring their settings.
            backend: What runs the model. `onnx` and `openvino` open a folder that `bellm export` wrote for them, as a
                `GraphEncoder`, which takes nothing else but `num_threads`.
            config: All settings at once.
            tokenizer: The tokenizer of a loaded model.
            dtype: `float32`, `bfloat16`, `float16`, or `auto`: as saved, else bfloat16 where the hardware is fast at
                it, else float32.
            device: A torch device or `auto`.
            attention: `eager`, `sdpa`, `flash_attention_2`, `flex_attention`, or `auto`.
            trust_remote_code: Whether the source may bring Python code of its own.
            revision: Branch, tag or commit of a model of the Hub.
            device_map: Spread the layers over several devices: `auto`, or a map as transformers takes it.
            verify: Measure that the open layers, and only they, see the future.
            **settings: Any field of `EncoderConfig`, as users write it (`bidirectional="last:8"`, `prompt="raw"`); they
                come before `config`. None stands for the saved or the default value.

        Raises:
            BellmError: What came, what is allowed and what to do, in one line.

        Warns:
            NoOpWarning: The open layers cannot change the vectors, or some chosen layers have no attention.
        """
        check_choice("backend", backend, BackendName)
        if backend != "torch":
            options: dict[str, Any] = {"config": config, "tokenizer": tokenizer, "dtype": dtype, "device": device}
            options |= {"attention": attention, "revision": revision, "device_map": device_map, **settings}
            given = {name: value for name, value in options.items() if value not in (None, "auto")}
            if not isinstance(source, str | PathLike):
                raise BellmError(f"backend={backend!r} opens a folder that bellm export wrote: give its path.")
            return GraphEncoder.from_pretrained(source, backend=backend, **given)
        if not isinstance(config, EncoderConfig | None):
            raise BellmError(
                f"config is {type(config).__name__}. Give an EncoderConfig, or the settings by their names."
            )
        given = {name: getattr(config, name) for name in setting_names()} if config else {}
        given |= given_settings(settings)
        check_settings(given)
        options = {"tokenizer": tokenizer, "device": device, "attention": attention}
        options |= {"trust_remote_code": trust_remote_code, "device_map": device_map}
        source = os.fspath(source) if isinstance(source, PathLike) else source
        if revision is not None:
            if not isinstance(source, str) or not is_hub_id(source):
                raise SourceError(f"revision={revision!r} is for a model of the Hub (owner/name), not for {source}.")
            source = f"{source}@{revision}"
        folder = fetch_layout(source) if isinstance(source, str) else None
        if folder:
            check_one_encoder(folder, str(source))
        saved = read_saved(folder) if folder and (folder / SETTINGS_FILE).is_file() else None
        if saved and dtype == "auto":
            dtype = saved.dtype
        loaded, own = saving.load_source(source, folder, dtype=dtype, **options)
        if not saved:
            resolved = resolve_config(None, {**own, **given}, loaded.model, loaded.tokenizer)
            return cls(loaded.model, loaded.tokenizer, resolved, loaded.name)._with_open_layers(verify)
        encoder = cls(loaded.model, loaded.tokenizer, saved.config, saved.base_model)
        encoder.source, encoder.compression, encoder.statistics = str(source), saved.compression, saved.statistics
        encoder = encoder._with_open_layers(verify)
        saving.check_fingerprint(saved, encoder.fingerprint(), encoder.dtype_name, encoder.source)
        return encoder.replace(**given, verify=verify) if given else encoder

    def replace(self, *, verify: bool = True, **settings: Any) -> "Encoder":
        """Give an encoder on the same weights with other settings; this one stays as it is.

        `settings` are fields of `EncoderConfig`, and None keeps what this encoder has. `verify` measures that the open
        layers, and only they, see the future.

        Raises:
            BellmError: A setting is unknown, or does not fit the model.
        """
        other = copy.copy(self)
        vars(other)["config"] = resolve_config(self.config, settings, self.model, self.tokenizer)
        return other._with_open_layers(verify)

    def with_settings(self, **settings: Any) -> "Encoder":
        """Give an encoder on the same model, not on a copy as `replace` does, with another prompt or readout.

        Settings are those that leave the model as it is: prompt, pooling, layer, readout, max_tokens, truncate_dim,
        normalize. What is done to the model of one, as adding adapters, is done to that of both.

        Raises:
            BellmError: A setting is unknown, does not fit the model, or changes it.
        """
        config, model = resolve_config(self.config, settings, self.model, self.tokenizer), self.model
        if changed := [name for name in _OF_MODEL if getattr(config, name) != getattr(self.config, name)]:
            raise BellmError(f"{changed[0]} changes the model: write encoder.replace({changed[0]}=...).")
        check_readout(config, model)
        _check_centering(config, self.statistics)
        other = copy.copy(self)
        vars(other).update(config=config, _model=model)  # Within `causal()` that is the plain one.
        return other

    def with_model(self, model: PreTrainedModel) -> "Encoder":
        """Give an encoder with the same settings on another form of its model, such as one with adapters.

        Raises:
            LayerError: The model's open layers are not those of the settings.
        """
        opened, prepends = get_open_layers(model), has_token_prepending(model)
        if (opened, prepends) != (self.config.bidirectional, self.config.token_prepending > 0):
            raise LayerError(
                f"Model and settings differ in their open layers ({format_layers(opened)} and "
                f"{format_layers(self.config.bidirectional)}) or in Token Prepending. {_FIXED['model']}"
            )
        other = copy.copy(self)
        vars(other)["_model"] = model
        return other

    def with_compression(self, record: Mapping[str, Any]) -> "Encoder":
        """Give the same encoder with one more record in `compression`, which is saved with it."""
        other = copy.copy(self)
        other.compression = (*self.compression, dict(record))
        return other

    def with_statistics(self, statistics: VectorStatistics, centering: CenteringName) -> "Encoder":
        """Give an encoder that centers or whitens vectors by statistics of its own vectors."""
        other = copy.copy(self)
        other.statistics = statistics
        return other.with_settings(centering=centering)

    def uncentered(self) -> "Encoder":
        """Give the encoder of the whole vectors that are centered, cut and normalized after that."""
        other = copy.copy(self)
        vars(other)["config"] = replace(self.config, centering="none", truncate_dim=None, normalize=False)
        return other

    def check_uncentered(self, what: str) -> None:
        """Raise a BellmError where vectors are centered by a mean that would no longer be theirs after what is done."""
        if self.config.centering != "none":
            raise centered_error(self.name, what)

    def finish(self, vectors_ND: Vectors) -> Vectors:
        """Center, cut and normalize vectors as the settings say, in this order."""
        if self.statistics and self.config.centering != "none":
            if id(self) in _causal.get():
                raise BellmError(
                    "The mean that centers vectors is not that of the causal model: replace(centering='none')."
                )
            vectors_ND = self.statistics.apply(vectors_ND, self.config.centering)
        # A view would keep the whole vectors in memory, and safetensors writes the first bytes of these.
        vectors_ND = np.ascontiguousarray(vectors_ND[:, : self.config.truncate_dim])
        return normalize_rows(vectors_ND) if self.config.normalize else vectors_ND

    @overload
    def encode(
        self,
        texts: str | Iterable[str],
        *,
        input_type: InputType = "text",
        convert_to_tensor: Literal[False] = False,
        **options: Unpack[EncodeOptions],
    ) -> Vectors: ...

    @overload
    def encode(
        self,
        texts: str | Iterable[str],
        *,
        input_type: InputType = "text",
        convert_to_tensor: Literal[True],
        **options: Unpack[EncodeOptions],
    ) -> torch.Tensor: ...

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        input_type: InputType = "text",
        max_batch_tokens: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        convert_to_tensor: bool = False,
        **habits: Unpack[EncodeHabits],
    ) -> Vectors | torch.Tensor:
        """Embed texts, in their order, as float32 of shape (len(texts), embedding_dim); one string as (embedding_dim,).

        An empty text is its prompt alone; without a prompt it is the tokenizer's BOS (or EOS) token. Special tokens
        that are written in a text are text.

        Args:
            texts: A string, or any iterable of strings, also of none: a list, generator, set, or column of a table.
            input_type: Which of the prompt's templates the texts are put into: `text`, `query` or `document`.
            max_batch_tokens: Most tokens in one forward pass; None takes what suits the hardware.
            batch_size: No forward pass has more tokens than so many of the longest text. It is seldom needed.
            progress: Show a progress bar; None shows it for long work at a terminal or in a notebook.
            convert_to_tensor: Give a tensor of torch, on the encoder's device, and not an array.
            **habits: Keywords of sentence-transformers, see `EncodeHabits`: `prompt`, `truncate_dim` and `normalize`
                are those of `replace` for this call alone, `show_progress_bar` is `progress`, and `prompt_name` and
                `task` are `input_type`.

        Raises:
            BellmError: `texts` are not strings, a keyword is not known, or the prompt leaves no room for text.

        Warns:
            TruncationWarning: Texts were cut to `max_tokens`; the prompt never is.
            NoOpWarning: Different texts all have the same vector, or some have a vector of zeros.
        """
        call = read_habits(habits, input_type, progress, self.device, convert_to_tensor)
        encoder = self.with_settings(**call.settings) if call.settings else self
        rows = [texts] if isinstance(texts, str) else tokenization.list_texts(texts)
        result = encoder.encode_with_stats(
            rows,
            input_type=call.input_type,
            max_batch_tokens=max_batch_tokens,
            batch_size=batch_size,
            progress=call.progress,
        )
        tokenization.warn_truncated(result.num_truncated, len(result.vectors), self.config.max_tokens)
        warn_degenerate(rows, result.vectors, self.dtype_name)
        vectors = result.vectors[0] if isinstance(texts, str) else result.vectors
        return torch.from_numpy(vectors).to(self.device) if convert_to_tensor else vectors

    @overload
    def encode_query(
        self,
        texts: str | Iterable[str],
        *,
        convert_to_tensor: Literal[False] = False,
        **options: Unpack[EncodeOptions],
    ) -> Vectors: ...

    @overload
    def encode_query(
        self, texts: str | Iterable[str], *, convert_to_tensor: Literal[True], **options: Unpack[EncodeOptions]
    ) -> torch.Tensor: ...

    def encode_query(self, texts: str | Iterable[str], **options: Any) -> Vectors | torch.Tensor:
        """Embed queries, with the prompt's query template where it has one; see `encode`."""
        vectors: Vectors | torch.Tensor = self.encode(texts, input_type="query", **options)
        return vectors

    @overload
    def encode_document(
        self,
        texts: str | Iterable[str],
        *,
        convert_to_tensor: Literal[False] = False,
        **options: Unpack[EncodeOptions],
    ) -> Vectors: ...

    @overload
    def encode_document(
        self, texts: str | Iterable[str], *, convert_to_tensor: Literal[True], **options: Unpack[EncodeOptions]
    ) -> torch.Tensor: ...

    def encode_document(self, texts: str | Iterable[str], **options: Any) -> Vectors | torch.Tensor:
        """Embed documents, with the prompt's document template where it has one; see `encode`."""
        vectors: Vectors | torch.Tensor = self.encode(texts, input_type="document", **options)
        return vectors

    def encode_with_stats(
        self,
        texts: Iterable[str],
        *,
        input_type: InputType = "text",
        max_batch_tokens: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = False,
        readout: Readout | None = None,
    ) -> EncodeResult:
        """Embed texts and count their tokens and those that were cut, without a warning; see `encode`.

        A `readout` reads other vectors of the same forward pass than the settings say, and they stay as they are.
        """
        texts = tokenization.list_texts(texts)
        for name, limit in (("max_batch_tokens", max_batch_tokens), ("batch_size", batch_size)):
            if limit is not None and not (isinstance(limit, int) and limit >= 1):
                raise BellmError(f"{name}={limit} is too small: give at least 1.")
        if progress is None:
            progress = len(texts) >= _PROGRESS_FROM and can_show_bars()
        wanted = readout or make_readout(self.config)
        chunks = list(tokenization.chunk_texts(texts))
        rows = map(self._tokenize_as(input_type), chunks)
        with progress_bar(len(texts), unit="text", shown=progress) as done:
            options = {"max_batch_tokens": max_batch_tokens, "batch_size": batch_size, "done": done}
            embed = self._embedding(wanted, bool(texts), **options)
            # The next chunk is tokenized in a thread, where there is a next.
            result = embed_chunks(prefetch(rows) if len(chunks) > 1 else rows, embed, wanted.width(self.model))
        if readout:
            return result
        return replace(result, vectors=self.finish(result.vectors))

    def similarity(self, left_ND: Vectors | torch.Tensor, right_MD: Vectors | torch.Tensor) -> Vectors:
        """Cosine of every left vector with every right vector, (N, M); one vector counts as a row.

        Raises:
            BellmError: They are of different widths, or hold NaN or infinity.
        """
        return cosine_similarity(*_matrices(left_ND, right_MD))

    def similarity_pairwise(self, left_ND: Vectors | torch.Tensor, right_ND: Vectors | torch.Tensor) -> Vectors:
        """Cosine of each left vector with the right vector of the same row, (N,); one vector counts as a row.

        Raises:
            BellmError: They are of different shapes, or hold NaN or infinity.
        """
        left_ND, right_ND = _matrices(left_ND, right_ND)
        if len(left_ND) != len(right_ND):
            raise BellmError(
                f"{len(left_ND)} and {len(right_ND)} vectors are no pairs. similarity compares all of them."
            )
        return paired_cosine_similarity(left_ND, right_ND)

    def tokenize(self, texts: Sequence[str], input_type: InputType = "text") -> Tokens:
        """Token ids as the model gets them, with the count of texts that were cut."""
        return self._tokenize_as(input_type)(texts)

    def tokenize_answers(self, prompts: Sequence[str | Rendered], answers: Sequence[str]) -> Tokens:
        """Token ids of every prompt with every answer behind it, prompt after prompt; spans are those of the answers.

        Where a row is longer than `max_tokens`, parts of its prompt are shortened; see `bellm.prompts.render`.
        """
        rendered = [Rendered(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
        return self._tokenizers.tokenize_answers(rendered, answers, self.config.max_tokens)

    def encode_tokens(self, tokens: Tokens, *, max_batch_tokens: int | None = None) -> Vectors:
        """Embed rows of token ids, as `tokenize` gives them, float32 (len(tokens), embedding_dim); see `encode`."""
        readout = make_readout(self.config)
        return self.finish(self._embedding(readout, len(tokens) > 0, max_batch_tokens=max_batch_tokens)(tokens))

    @contextmanager
    def causal(self) -> Iterator[PreTrainedModel]:
        """Give the plain causal model on the same weights, for generation.

        Inside the block, in this thread alone, `encoder.model` is that model too, and `encode` the causal baseline.
        """
        plain = causal_copy(self._model)
        token = _causal.set({**_causal.get(), id(self): plain})
        try:
            yield plain
        finally:
            _causal.reset(token)

    def fingerprint(self) -> Vectors:
        """Vectors of a few fixed texts, as texts and as queries, by which encoders are compared."""
        input_types: tuple[InputType, ...] = ("text", "query")
        results = [self.encode_with_stats(FINGERPRINT_TEXTS, input_type=each) for each in input_types]
        return np.concatenate([result.vectors for result in results])

    def describe(self) -> dict[str, Any]:
        """What this encoder is and every setting that decides its vectors, as JSON values."""
        return {
            "name": self.name,
            **self.config.to_dict(),
            **({"centering_statistics": self.statistics.digest} if self.statistics else {}),
            "num_layers": self.num_layers,
            "embedding_dim": self.embedding_dim,
            "dtype": self.dtype_name,
            "device": str(self.device),
        }

    def save_pretrained(self, path: str | Path, *, notes: str = "") -> None:
        """Write weights (safetensors), tokenizer, settings and fingerprint to a new folder.

        Of an encoder whose model is one of PEFT only the adapters are written, and loading merges them into the base
        model. The fingerprint is that of the merged model. Adapters that were put into its model are written merged.
        `notes` is Markdown for the end of the model card.

        Raises:
            SourceError: Something is there already, the disk refuses, or adapters cannot be merged.
        """
        merged, written = self, self._model
        if has_adapters(self._model):
            from bellm.backbone import adapters  # It needs peft, which brought these.

            merged = self.with_model(cast(PreTrainedModel, adapters.merged_copy(self._model)))
            written = merged._model if isinstance(self._model, PreTrainedModel) else self._model
        saved = SavedEncoder(
            self.config,
            self.name,
            self.dtype_name,
            self.num_layers,
            merged.fingerprint(),
            self.compression,
            self.statistics,
        )
        with atomic_directory(Path(path)) as draft:
            saving.write_saved(draft, causal_copy(written), self.tokenizer, saved, notes)

    def push_to_hub(self, repo_id: str, *, private: bool = True, token: str | None = None) -> str:
        """Save to a Hub repository, made if it is not there; returns the commit's address.

        Raises:
            SourceError: The Hub refuses.
        """
        with tempfile.TemporaryDirectory() as parent:
            self.save_pretrained(Path(parent) / "encoder")
            return saving.push_folder(Path(parent) / "encoder", repo_id, private=private, token=token)

    def to(
        self,
        device: str | int | torch.device | torch.dtype | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> "Encoder":
        """Move this encoder to a device, to another dtype, or both, and return it.

        As in PyTorch this encoder changes; others on the same weights keep theirs, and so does a model that was given.

        Raises:
            SourceError: torch does not know the device or dtype, or the weights are quantized or on several devices.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        if isinstance(device, int):
            device = f"cuda:{device}"
        target = self.device if device is None else loading.resolve_device(str(device))
        kind = self._model.dtype if dtype is None else loading.resolve_dtype(dtype, target)
        try:
            target = torch.empty(0, device=target).device  # With its index.
        except (AssertionError, RuntimeError) as error:
            raise SourceError(f"{target} cannot be used: {str(error).splitlines()[0]}") from error
        if (target, kind) != (self.device, self._model.dtype):
            vars(self)["_model"] = moved_copy(self._model, target, kind)
        return self

    def cpu(self) -> "Encoder":
        """Move this encoder to the CPU, see `to`."""
        return self.to("cpu")

    def cuda(self, device: int | str = "cuda") -> "Encoder":
        """Move this encoder to a GPU, see `to`."""
        return self.to(device)

    def half(self) -> "Encoder":
        """Change the weights of this encoder to float16, see `to`."""
        return self.to(torch.float16)

    def bfloat16(self) -> "Encoder":
        """Change the weights of this encoder to bfloat16, see `to`."""
        return self.to(torch.bfloat16)

    def float(self) -> "Encoder":
        """Change the weights of this encoder to float32, see `to`."""
        return self.to(torch.float32)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse to set what decides vectors, for which the model was opened and checked, and what does not exist."""
        if name in setting_names() or name in _FIXED:
            instead = _FIXED.get(name, f"Write encoder = encoder.replace({name}={value!r}).")
            raise BellmError(f"encoder.{name} cannot be set. {instead}")
        if name not in vars(self) and name not in ("_tokenizers", "name", "source", "compression", "statistics"):
            raise unknown_attribute(name, (*setting_names(), *dir(self)))
        super().__setattr__(name, value)

    if not TYPE_CHECKING:  # Type checkers would take every attribute for one that is there.

        def __getattr__(self, name: str) -> Any:
            """Say what is written here for an attribute that encoders of other libraries have."""
            raise unknown_attribute(name)

    @property
    def model(self) -> PreTrainedModel:
        """The model as it embeds, with open layers; the plain one inside `causal()`."""
        return _causal.get().get(id(self), self._model)

    @property
    def batching_mode(self) -> str:
        """How texts are batched: `packed` (no padding, shared prefixes once), or `padded` and why."""
        check = check_packing(self.model)
        return "packed" if check.packed_model else f"padded: {check.reason}"

    @property
    def attention_kernel(self) -> AttentionKernel | None:
        """What computes attention in packed batches, see `attention_kernels`; None where batches are padded."""
        packed = check_packing(self.model).packed_model
        return packed.kernel if packed else None

    @property
    def embedding_dim(self) -> int:
        """Width of the vectors."""
        return self.config.truncate_dim or make_readout(self.config).width(self.model)

    @property
    def max_seq_length(self) -> int:
        """Longest input in tokens, its prompt included: the setting `max_tokens`."""
        return self.config.max_tokens

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return count_layers(self.model)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return input_device(self.model)

    @property
    def dtype_name(self) -> str:
        """Dtype of the weights: float32, bfloat16 or float16."""
        return str(self.model.dtype).removeprefix("torch.")

    def __repr__(self) -> str:
        """Every setting, the model's size, dtype and device, in one line."""
        values = self.describe()
        facts = ", ".join(f"{name}={values[name]}" for name in (*setting_names(), "num_layers", "embedding_dim"))
        return f"Encoder({self.name}, {facts}, {self.dtype_name} on {self.device})"

    def _repr_html_(self) -> str:
        """What `describe` says, as a table for notebooks."""
        rows = (
            f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in self.describe().items()
        )
        return f"<table><caption>Encoder</caption>{''.join(rows)}</table>"

    def _embedding(self, readout: Readout, has_rows: bool, **options: Any) -> Callable[[Tokens], Vectors]:
        """What turns rows into vectors as a readout reads them, neither cut nor normalized."""
        return partial(
            embed_tokens,
            self.model,
            packed=check_packing(self.model).packed_model if has_rows else None,
            readout=readout,
            pad_id=fallback_token_id(self.tokenizer),
            **options,
        )

    def _tokenize_as(self, input_type: InputType) -> Callable[[Sequence[str]], Tokens]:
        """What puts texts into the template of an input type and tokenizes them."""
        return partial(
            self._tokenizers.tokenize,
            template=self.config.template_for(input_type),
            max_tokens=self.config.max_tokens,
            prepends=self.config.token_prepending > 0 and has_token_prepending(self.model),
        )

    def _with_open_layers(self, verify: bool) -> "Encoder":
        """This encoder on a shared copy of its model with the layers open that the settings say."""
        config = self.config
        if config.token_prepending:
            model = with_token_prepending(self.model, config.token_prepending, fallback_token_id(self.tokenizer))
        else:
            model = open_layers(self.model, config.bidirectional, variant=config.variant, window=config.window)
        check_readout(config, model)
        _check_centering(config, self.statistics)
        if reason := config.no_op_reason(count_layers(model)):
            warn(reason, NoOpWarning)
        if verify:
            check_open_layers(model)
        opened = copy.copy(self)
        vars(opened)["_model"] = model.eval()
        return opened


def _check_centering(config: EncoderConfig, statistics: VectorStatistics | None) -> None:
    """Refuse to center by statistics that are not there, or are of other vectors."""
    if config.centering == "none":
        return
    learn = "learn it: bellm center SOURCE --texts FILE -o FOLDER, or bellm.compress.center."
    given = f"centering={config.centering!r}"
    if statistics is None:
        raise BellmError(f"{given} needs the mean of some texts' vectors, and there is none: {learn}")
    if config.centering == "whitening" and statistics.whitening_DD is None:
        raise BellmError(
            f"centering='whitening' needs more texts than the {len(statistics.mean_D)} numbers of a vector, and the "
            f"mean is that of {len(statistics.hashes)}: learn both of more texts (bellm center --whiten)."
        )
    if statistics.settings != config.uncentered_digest():
        raise BellmError(
            "These settings give other vectors than those whose mean is known (prompt, pooling, layer, open layers): "
            f"give centering='none' too, or {learn}"
        )


def _matrices(*sides: Vectors | torch.Tensor) -> tuple[Vectors, ...]:
    """Vectors as rows of float32 matrices of one width."""
    try:
        arrays = (side.detach().cpu().float() if isinstance(side, torch.Tensor) else side for side in sides)
        left_ND, right_MD = (np.atleast_2d(np.asarray(side, dtype=np.float32)) for side in arrays)
    except (TypeError, ValueError) as error:
        raise BellmError(f"Cosines are those of vectors, as encode gives them: {error}.") from error
    if left_ND.ndim > 2 or right_MD.ndim > 2 or left_ND.shape[1:] != right_MD.shape[1:]:
        raise BellmError(
            f"Arrays of shapes {left_ND.shape} and {right_MD.shape} have no cosines: give rows of one width."
        )
    if not (np.isfinite(left_ND).all() and np.isfinite(right_MD).all()):
        raise BellmError("Vectors with NaN or infinity have no cosines. Embed again with dtype='float32'.")
    return left_ND, right_MD
