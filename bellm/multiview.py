"""Multi-view encoders: several vectors of a text as one, by their weights.

Shapes: N texts, D width of a view, W width of a vector.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from safetensors.numpy import save_file

from bellm.backbone.loading import locate
from bellm.backbone.source_layouts import MODULES_FILE, fetch_layout
from bellm.backbone.source_names import VIEWS_FILE, split_revision
from bellm.config import EncoderConfig, check_settings, parse_setting, refuse_unknown, setting_names
from bellm.data.amr import Graphs, fingerprint_graphs, read_graphs, warn_missing_graphs
from bellm.encode_options import read_fixed_habits
from bellm.encoder import Encoder
from bellm.engine.embedding import EncodeResult, warn_degenerate
from bellm.engine.graph_encoder import GraphEncoder, is_graph
from bellm.engine.readout import JoinedReadout, make_readout
from bellm.engine.tokenization import list_texts, warn_truncated
from bellm.errors import (
    BellmError,
    FingerprintError,
    SeveralViewsError,
    SourceError,
    check_choice,
    check_list,
    errors_naming,
)
from bellm.io.atomic import atomic_directory, write_json
from bellm.prompts import META_PROMPTS, Prompt
from bellm.saved_encoder import FINGERPRINT_FILE, FINGERPRINT_TEXTS, digest_views, read_views
from bellm.saving import ENCODER_MODULE, weights_digest
from bellm.tensors.similarity import cosine_similarity, normalize_rows, relative_distance, tolerances
from bellm.types import CombineMethod, Embedder, InputType, TransformName, Vectors
from bellm.version import __version__

_LOADING = ("dtype", "device", "device_map", "attention", "trust_remote_code", "verify")
"""What cannot be changed once the weights are there."""

_WEIGHTS = 2.0 ** np.arange(-6, 6.25, 0.25)
"""Weights of a second view that are tried, from 1/64 to 64."""

_FEWEST_TEXTS, _MOST_PAIRED = 10, 500
"""Texts whose pairs decide a weight; 500 are an eighth of a million pairs."""


@dataclass(frozen=True)
class View:
    """One vector of a text: an embedder, and what a text is turned into before."""

    embedder: Embedder
    transform: Callable[[str], str] | TransformName | None = None
    """A function of the text, which no folder keeps; or `amr`, its AMR graph (MSE-AMR, arXiv 2210.09773)."""


class MultiViewEncoder:
    """Several embedders as one. Each view is scaled to length 1; no statistic of a batch plays a part.

    With weights w and the views' cosines c of two texts, the vectors' dot product is the sum of w c for `sum`, and that
    sum over the sum of w for `concat`: the same order of texts, and for equal weights the mean of the cosines. MoEE
    (arXiv 2410.10814) is the `sum` of an encoder's states and its routing weights.
    """

    def __init__(
        self,
        views: Sequence[Embedder | View],
        *,
        method: CombineMethod = "concat",
        weights: Sequence[float] | None = None,
        weights_from: str = "given",
    ) -> None:
        """Combine views.

        Args:
            views: At least two embedders, or one that reads something else than the text.
            method: How they become one vector.
            weights: One for each view, above 0; None for equal ones.
            weights_from: Where the weights come from, in words; it is saved with them.

        Raises:
            BellmError: A weight is missing or not above 0, or views to be averaged have other widths.
        """
        check_list("views", views)
        check_choice("method", method, CombineMethod)
        self.views = tuple(map(_as_view, views))
        if len(views) < 2 and self.views[0].transform is None:
            raise BellmError("One view is an encoder: give at least two.")
        for view in self.views:
            if isinstance(view.transform, str):
                check_choice("transform", view.transform, TransformName)
        weights = tuple(map(float, weights or [1.0] * len(views)))
        if len(weights) != len(views):
            raise BellmError(f"There are {len(weights)} weights for {len(views)} views: give one for each.")
        if not all(0 < weight < np.inf for weight in weights):
            raise BellmError(f"weights={list(weights)} are not all above 0. Leave a view out if it counts nothing.")
        widths = [view.embedder.embedding_dim for view in self.views]
        if method == "mean" and len(set(widths)) > 1:
            raise BellmError(f"method='mean' takes views of one width, and these have {widths}. Take concat or sum.")
        self.method, self.weights, self.weights_from = method, weights, weights_from
        self.embedding_dim = widths[0] if method == "mean" else sum(widths)
        self.name = " + ".join(map(_view_name, self.views))
        self.source = self.name
        """What it was loaded from."""
        self.graphs: Graphs | None = None
        """What views of AMR graphs read, see `with_graphs`."""

    @classmethod
    def moee(
        cls, encoder: Encoder, *, alpha: float | None = None, texts: Iterable[str] | None = None
    ) -> "MultiViewEncoder":
        """States and routing weights of one mixture of experts, summed as MoEE does: cos + alpha * cos of the routing.

        Without `alpha`, the texts choose it; see `choose_weight`.
        """
        return cls.weighted([encoder, encoder.with_settings(readout="routing", layer=-1)], alpha, texts)

    @classmethod
    def amr(cls, encoder: Encoder, *, weights: Sequence[float] | None = None) -> "MultiViewEncoder":
        """A text and its AMR graph, side by side, read by one encoder (MSE-AMR); see `with_graphs`."""
        return cls([encoder, View(encoder, "amr")], weights=weights)

    @classmethod
    def prompts(cls, encoder: Encoder, prompts: Sequence[str | Prompt] = META_PROMPTS) -> "MultiViewEncoder":
        """Mean of the vectors that several prompts give a text (MetaEOL, arXiv 2402.18458).

        Each prompt takes a forward pass over all texts. Packed batches compute what stands before the texts once.
        """
        check_list("prompts", prompts)
        return cls([encoder.with_settings(prompt=prompt) for prompt in prompts], method="mean")

    @classmethod
    def weighted(
        cls,
        views: Sequence[Embedder],
        weight: float | None,
        texts: Iterable[str] | None,
        *,
        method: CombineMethod = "sum",
    ) -> "MultiViewEncoder":
        """Combine two views, the second with a weight, given or chosen on texts."""
        if weight is not None:
            return cls(views, method=method, weights=(1.0, weight))
        texts = list_texts(texts or [])
        chosen = choose_weight(views, texts)
        return cls(views, method=method, weights=(1.0, chosen), weights_from=f"agreement on {len(texts)} texts")

    @classmethod
    def from_pretrained(cls, source: str | PathLike[str], **options: Any) -> "MultiViewEncoder":
        """Load what `save_pretrained` wrote, checked by its fingerprint.

        Options are those of `Encoder.from_pretrained` that load: dtype, device, attention, device_map and
        trust_remote_code. Views have settings of their own.

        Raises:
            BellmError: It cannot be read, or does not give the vectors that it was saved with.
        """
        if settings := [name for name, value in options.items() if name not in _LOADING and value is not None]:
            raise BellmError(f"{source} holds several views with settings of their own: leave {settings[0]} out.")
        folder = fetch_layout(str(source))
        if folder is None or not (folder / VIEWS_FILE).is_file():
            raise SourceError(f"{source} has no {VIEWS_FILE}. Combine encoders first: bellm combine A B -o FOLDER.")
        record, saved = read_views(folder)
        loaded: dict[str, Encoder | MultiViewEncoder] = {}
        for name in dict.fromkeys(view["folder"] for view in record["views"]):
            loaded[name] = open_encoder(str(folder / name), **options)
        views = [
            View(_with_settings(loaded[view["folder"]], view.get("settings")), view.get("transform"))
            for view in record["views"]
        ]
        choices = {name: record[name] for name in ("method", "weights", "weights_from")}
        encoder = cls(views, **choices)
        encoder.source = str(source)
        _check_fingerprint(encoder, folder, record, saved)
        return encoder

    def save_pretrained(self, path: str | PathLike[str]) -> None:
        """Write all views, shared weights once, to a new folder.

        Raises:
            SourceError: Something is there already, the disk refuses, or a view cannot be saved.
        """
        record: dict[str, Any] = {"bellm": __version__, **self._choices(), "dtype": self.dtype_name, "views": []}
        with atomic_directory(Path(path)) as draft:
            folders: list[tuple[Embedder, str]] = []
            for number, view in enumerate(self.views, 1):
                embedder = view.embedder
                if callable(view.transform) or not isinstance(embedder, Encoder | MultiViewEncoder):
                    raise SourceError(
                        f"View {number} is no encoder of bellm, or has a function before it: only encoders are saved."
                    )
                shared = next((name for other, name in folders if _share_folder(embedder, other)), None)
                if shared is None:
                    folders.append((embedder, shared := f"view-{number}"))
                    embedder.save_pretrained(draft / shared)
                    record["views"].append({"folder": shared})
                else:
                    assert isinstance(embedder, Encoder)
                    record["views"].append({"folder": shared, "settings": embedder.config.to_dict()})
                if view.transform:
                    record["views"][-1]["transform"] = view.transform
            record["description"] = (self.with_graphs(None) if self.reads_graphs else self).describe()
            write_json(draft / VIEWS_FILE, record)
            write_json(draft / MODULES_FILE, [ENCODER_MODULE])
            save_file(
                {"vectors": self.fingerprint()}, draft / FINGERPRINT_FILE, metadata={"views": digest_views(record)}
            )
            (draft / FINGERPRINT_FILE).chmod((draft / VIEWS_FILE).stat().st_mode)

    def encode(
        self,
        texts: str | Iterable[str],
        *,
        input_type: InputType = "text",
        max_batch_tokens: int | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        **habits: Any,
    ) -> Vectors:
        """Embed texts, in their order, as float32 (len(texts), embedding_dim), and a string as one vector.

        See `Encoder.encode`. Settings are those of the views: keywords that would change one for this call are refused.
        """
        devices = [view.embedder.device for view in self.views if isinstance(view.embedder, Encoder)]
        call = read_fixed_habits(habits, input_type, progress, devices[0] if devices else torch.device("cpu"))
        rows = [texts] if isinstance(texts, str) else list_texts(texts)
        result = self.encode_with_stats(
            rows,
            input_type=call.input_type,
            max_batch_tokens=max_batch_tokens,
            batch_size=batch_size,
            progress=call.progress,
        )
        warn_truncated(result.num_truncated, len(rows), self.max_tokens)
        warn_missing_graphs(result.num_missing_graphs, len(rows))
        warn_degenerate(rows, result.vectors, self.dtype_name)
        return result.vectors[0] if isinstance(texts, str) else result.vectors

    def encode_query(self, texts: str | Iterable[str], **options: Any) -> Vectors:
        """Embed queries; see `encode`."""
        return self.encode(texts, input_type="query", **options)

    def encode_document(self, texts: str | Iterable[str], **options: Any) -> Vectors:
        """Embed documents; see `encode`."""
        return self.encode(texts, input_type="document", **options)

    def encode_with_stats(
        self, texts: Iterable[str], *, input_type: InputType = "text", **options: Any
    ) -> EncodeResult:
        """Embed texts and count the tokens of all views, and the texts that were cut in the view that cut the most.

        Texts without an AMR graph are counted where views read graphs.
        """
        texts = list_texts(texts)
        parts: dict[int, Vectors] = {}
        num_tokens = num_truncated = 0
        for group in self._passes():
            view = self.views[group[0]]
            given = self._read(view, texts)
            embedders = [self.views[index].embedder for index in group]
            vectors, tokens, truncated = _embed_views(embedders, given, input_type, options)
            parts |= {index: normalize_rows(vectors_ND) for index, vectors_ND in zip(group, vectors, strict=True)}
            num_tokens, num_truncated = num_tokens + tokens, max(num_truncated, truncated)
        vectors_NW = self._combine([parts[index] for index in range(len(parts))])
        num_missing = self.graphs.num_missing(texts) if self.graphs else 0
        return EncodeResult(vectors_NW, num_tokens, num_truncated, num_missing)

    def count_tokens(self, texts: Sequence[str], input_type: InputType = "text") -> tuple[list[int], int]:
        """Tokens of each text in all passes, and how many texts are cut in the view that cuts the most.

        Only encoders of bellm can tell.
        """
        totals, most = [0] * len(texts), 0
        for group in self._passes():
            view = self.views[group[0]]
            given = self._read(view, list(texts))
            if isinstance(view.embedder, Encoder):
                tokens = view.embedder.tokenize(given, input_type)
                counts, num_truncated = list(map(len, tokens.ids)), tokens.num_truncated
            elif isinstance(view.embedder, MultiViewEncoder):
                counts, num_truncated = view.embedder.count_tokens(given, input_type)
            else:
                continue
            totals, most = list(map(sum, zip(totals, counts, strict=True))), max(most, num_truncated)
        return totals, most

    @property
    def reads_graphs(self) -> bool:
        """Whether a view reads AMR graphs."""
        return any(view.transform == "amr" or _reads_graphs(view.embedder) for view in self.views)

    def with_graphs(self, graphs: Graphs | None) -> "MultiViewEncoder":
        """Give the same encoder with the AMR graphs of texts, as `bellm.data.read_graphs` reads them, or with none.

        Texts without a graph are read as they are. Graphs are part of `describe`, and are not saved.

        Raises:
            BellmError: No view reads graphs.
        """
        if not self.reads_graphs:
            raise BellmError(
                f"{self.source} has no view of AMR graphs: leave the graphs out, or add SOURCE?transform=amr."
            )
        other = copy.copy(self)
        other.graphs = graphs
        other.views = tuple(
            replace(view, embedder=view.embedder.with_graphs(graphs))
            if isinstance(view.embedder, MultiViewEncoder) and view.embedder.reads_graphs
            else view
            for view in self.views
        )
        return other

    def check_graphs(self) -> None:
        """Raise a BellmError where a view reads graphs, and there are none."""
        if self.reads_graphs and self.graphs is None:
            raise BellmError(
                f"{self.source} reads AMR graphs, and none are given: --graphs FILE, or in Python "
                "encoder.with_graphs(read_graphs(FILE)). Texts that the file has no graph of are embedded as they are."
            )

    def replace(self, **settings: Any) -> "MultiViewEncoder":
        """Give the same views with other settings of each, see `Encoder.replace`.

        Raises:
            BellmError: A view is no encoder of bellm, or a setting does not fit it.
        """
        views = []
        for number, view in enumerate(self.views, 1):
            if not isinstance(view.embedder, Encoder | MultiViewEncoder):
                raise BellmError(f"View {number} of {self.source} is no encoder of bellm: it has no settings.")
            views.append(replace(view, embedder=view.embedder.replace(**settings)))
        other = MultiViewEncoder(views, **self._choices())
        other.source, other.graphs = self.source, self.graphs
        return other

    def similarity(self, left_ND: Vectors, right_MD: Vectors) -> Vectors:
        """Cosine of every left vector with every right vector, (N, M)."""
        return cosine_similarity(np.atleast_2d(left_ND), np.atleast_2d(right_MD))

    def fingerprint(self) -> Vectors:
        """Vectors of a few fixed texts, as texts and as queries, by which encoders are compared.

        Views of graphs read fixed graphs of them, whatever graphs were given.
        """
        encoder = self.for_fingerprint()
        input_types: tuple[InputType, ...] = ("text", "query")
        return np.concatenate(
            [encoder.encode_with_stats(FINGERPRINT_TEXTS, input_type=each).vectors for each in input_types]
        )

    def for_fingerprint(self) -> "MultiViewEncoder":
        """The encoder itself, or where views read graphs with those of the fingerprint's texts."""
        return self.with_graphs(fingerprint_graphs()) if self.reads_graphs else self

    def describe(self) -> dict[str, Any]:
        """Method, weights, digest of the graphs and the description of every view, as JSON values."""
        elsewhere = ("name", "device")
        views = [
            {name: value for name, value in view.embedder.describe().items() if name not in elsewhere}
            | ({"transform": _transform_name(view)} if view.transform else {})
            for view in self.views
        ]
        own = {"name": self.name, **self._choices(), "views": views, "embedding_dim": self.embedding_dim}
        if self.reads_graphs:
            own["graphs"] = self.graphs.digest if self.graphs else "none given"
        return {**own, "max_tokens": self.max_tokens, "dtype": self.dtype_name}

    def weights_digest(self) -> str:
        """Digest of the weights of all views; see `saving.weights_digest`."""
        digests = [
            weights_digest(view.embedder.model)
            if isinstance(view.embedder, Encoder)
            else view.embedder.weights_digest()
            for view in self.views
            if isinstance(view.embedder, Encoder | MultiViewEncoder)
        ]
        forms = "+".join(dict.fromkeys(digest.partition(":")[0] for digest in digests))
        return f"{forms}:{hashlib.blake2b(' '.join(digests).encode(), digest_size=16).hexdigest()}"

    @property
    def embedders(self) -> tuple[Embedder, ...]:
        """Embedder of each view."""
        return tuple(view.embedder for view in self.views)

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The encoders of bellm among the embedders, those of views of views too."""
        parts = (
            view.embedder.encoders if isinstance(view.embedder, MultiViewEncoder) else (view.embedder,)
            for view in self.views
        )
        return tuple(encoder for encoder in chain.from_iterable(parts) if isinstance(encoder, Encoder))

    @property
    def dtype_name(self) -> str:
        """Dtype of the weights, the coarsest of the views'."""
        dtypes = {view.embedder.describe().get("dtype") for view in self.views}
        return next((name for name in ("bfloat16", "float16") if name in dtypes), "float32")

    @property
    def max_tokens(self) -> int:
        """Longest input of the view that takes the least; 0 where none has a limit."""
        limits = (view.embedder.describe().get("max_tokens") for view in self.views)
        return min((limit for limit in limits if limit), default=0)

    def __repr__(self) -> str:
        weights = ", ".join(f"{weight:g}" for weight in self.weights)
        return (
            f"MultiViewEncoder({self.name}, method={self.method}, weights={weights}, {self.embedding_dim} dimensions)"
        )

    def _read(self, view: View, texts: list[str]) -> list[str]:
        """What a view reads in place of texts."""
        if view.transform == "amr":
            self.check_graphs()
            assert self.graphs
            return [self.graphs(text) for text in texts]
        return [view.transform(text) for text in texts] if callable(view.transform) else texts

    def _choices(self) -> dict[str, Any]:
        return {"method": self.method, "weights": list(self.weights), "weights_from": self.weights_from}

    def _passes(self) -> list[list[int]]:
        """Views by the forward pass that computes them."""
        groups: list[list[int]] = []
        for index, view in enumerate(self.views):
            same = (group for group in groups if _same_pass(view, self.views[group[0]]))
            if group := next(same, None):
                group.append(index)
            else:
                groups.append([index])
        return groups

    def _combine(self, unit_ND: Sequence[Vectors]) -> Vectors:
        total = sum(self.weights)
        if self.method == "mean":
            return sum(weight / total * part for weight, part in zip(self.weights, unit_ND, strict=True))  # type: ignore[return-value]
        scale = np.sqrt(np.asarray(self.weights) / (total if self.method == "concat" else 1.0))
        return np.concatenate([np.float32(by) * part for by, part in zip(scale, unit_ND, strict=True)], axis=1)


def open_embedder(source: str, **options: Any) -> "Encoder | MultiViewEncoder | GraphEncoder":
    """Open an encoder as `open_encoder` does, or the graph of a folder that `bellm export` wrote for ONNX or OpenVINO.

    Raises:
        BellmError: It cannot be loaded, or a graph was given settings, which it has of its own.
    """
    path = source.partition("?")[0]
    if not is_graph(path):
        return open_encoder(source, **options)
    given = {name: value for name, value in {**options, **source_settings(source)}.items() if value is not None}
    if given.get("device") in ("auto", "cpu"):
        del given["device"]
    return GraphEncoder.from_pretrained(path, **given)


def open_encoder(
    source: str,
    *,
    loaded: dict[str, Encoder] | None = None,
    graphs: str | PathLike[str] | None = None,
    **options: Any,
) -> Encoder | MultiViewEncoder:
    """Open an encoder or a multi-view encoder.

    Args:
        source: What `Encoder.from_pretrained` or `MultiViewEncoder.from_pretrained` takes; behind it may stand a
            question mark and settings (`smollm2?bidirectional=last:8&pooling=mean`). `transform=amr` among them makes a
            view of it that reads AMR graphs in place of texts.
        loaded: Encoders by their weights, which are shared and added to.
        graphs: File of AMR graphs, for an encoder that reads them; see `bellm.data.read_graphs`.
        options: Arguments of `Encoder.from_pretrained`; the source's settings come before them.

    Raises:
        BellmError: It cannot be loaded, or reads no graphs.
    """
    given = None if graphs is None else read_graphs(graphs)
    encoder = _open(source, loaded, options)
    return encoder if given is None else give_graphs([encoder], given)[0]


def give_graphs(encoders: Sequence[Any], graphs: Graphs) -> list[Any]:
    """Give AMR graphs to those of some encoders that read them; an error where none does."""
    if not any(map(_reads_graphs, encoders)):
        named = getattr(encoders[0], "source", "This") if len(encoders) == 1 else "None of these models"
        raise BellmError(
            f"{named} has no view of AMR graphs: leave --graphs {graphs.source} out, or give SOURCE?transform=amr."
        )
    return [encoder.with_graphs(graphs) if _reads_graphs(encoder) else encoder for encoder in encoders]


def _open(source: str, loaded: dict[str, Encoder] | None, options: Mapping[str, Any]) -> Encoder | MultiViewEncoder:
    path, settings = source.partition("?")[0], {**options, **source_settings(source)}
    if transform := settings.pop("transform", None):
        if given := [name for name in setting_names() if options.get(name) is not None]:
            raise BellmError(f"{source} is a view with settings of its own: write {source}&{given[0]}=... instead.")
        views = MultiViewEncoder([View(_open_path(path, loaded, settings), transform)])
        views.source = source
        return views
    return _open_path(path, loaded, settings)


def _open_path(path: str, loaded: dict[str, Encoder] | None, settings: dict[str, Any]) -> Encoder | MultiViewEncoder:
    fixed = {name: settings.pop(name) for name in _LOADING if name in settings}
    try:
        if loaded is None:
            encoder: Encoder = Encoder.from_pretrained(path, **fixed, **settings)
            return encoder
        key = f"{path} {json.dumps(fixed, sort_keys=True)}"
        if key not in loaded:
            loaded[key] = Encoder.from_pretrained(path, **fixed)
        return loaded[key].replace(**settings)
    except SeveralViewsError:
        return MultiViewEncoder.from_pretrained(path, **fixed, **settings)


def check_sources(sources: Iterable[str]) -> None:
    """Check that sources name models, and their settings, as far as that takes no model; an error names the source."""
    for source in sources:
        with errors_naming(source):
            source_settings(source)
            locate(*split_revision(source.partition("?")[0]))


def source_settings(source: str) -> Mapping[str, Any]:
    """Settings that stand behind a source's question mark, checked as far as that takes no model."""
    settings: dict[str, Any] = {}
    for name, value in parse_qsl(source.partition("?")[2], keep_blank_values=True):
        refuse_unknown([name], (*setting_names(), "dtype", "attention", "transform"))
        settings[name] = parse_setting(name, value) if name in setting_names() else value
    check_settings({name: value for name, value in settings.items() if name in setting_names()})
    if "transform" in settings:
        check_choice("transform", settings["transform"], TransformName)
    return settings


def choose_weight(views: Sequence[Embedder], texts: Sequence[str]) -> float:
    """Weight of the second of two views with which their weighted cosines agree best with the cosines of each.

    Agreement is Spearman's correlation over all pairs of the texts, or of some hundred of them; its sum over both views
    is at its largest. No label plays a part (alpha of MoEE, arXiv 2410.10814, version 2).

    Raises:
        BellmError: There are not two views, or fewer than ten different texts.
    """
    texts = list(dict.fromkeys(texts))
    if len(views) != 2:
        raise BellmError(f"Texts choose the weight of a second view, and there are {len(views)}: give weights.")
    if len(texts) < _FEWEST_TEXTS:
        raise BellmError(f"{len(texts)} different texts are too few to choose a weight: give at least {_FEWEST_TEXTS}.")
    rows = np.linspace(0, len(texts) - 1, min(len(texts), _MOST_PAIRED)).round().astype(int)
    vectors = [normalize_rows(view.encode([texts[row] for row in rows])) for view in views]
    upper = np.triu_indices(len(rows), 1)
    cosines = [(unit_ND @ unit_ND.T)[upper] for unit_ND in vectors]
    ranks = [_ranks(each) for each in cosines]

    def agreement(weight: float) -> float:
        of_sum = _ranks(cosines[0] + weight * cosines[1])
        return float(sum(np.corrcoef(of_sum, each)[0, 1] for each in ranks))

    return float(max(_WEIGHTS, key=agreement))


def _ranks(values: Vectors) -> Vectors:
    return values.argsort(kind="stable").argsort().astype(np.float32)


def _embed_views(
    views: Sequence[Embedder], texts: list[str], input_type: InputType, options: Mapping[str, Any]
) -> tuple[list[Vectors], int, int]:
    """Vectors of views that one pass computes, with the counts of its tokens and truncated texts."""
    first = views[0]
    if not isinstance(first, Encoder | MultiViewEncoder):
        return [first.encode(texts, input_type=input_type)], 0, 0
    configs = [view.config for view in views if isinstance(view, Encoder)]
    if len(views) == 1 or not isinstance(first, Encoder):
        result = first.encode_with_stats(texts, input_type=input_type, **options)
        return [result.vectors], result.num_tokens, result.num_truncated
    readouts = tuple(make_readout(config) for config in configs)
    result = first.encode_with_stats(texts, input_type=input_type, readout=JoinedReadout(readouts, "concat"), **options)
    ends = np.cumsum([readout.width(first.model) for readout in readouts])
    parts = zip(np.split(result.vectors, ends[:-1], axis=1), configs, strict=True)
    return [part[:, : config.truncate_dim] for part, config in parts], result.num_tokens, result.num_truncated


def _as_view(view: Any) -> View:
    """A view; that of a multi-view encoder of one."""
    if isinstance(view, MultiViewEncoder) and len(view.views) == 1:
        return view.views[0]
    return view if isinstance(view, View) else View(view)


def _reads_graphs(embedder: Any) -> bool:
    return isinstance(embedder, MultiViewEncoder) and embedder.reads_graphs


def _view_name(view: View) -> str:
    name = str(getattr(view.embedder, "name", "?"))
    return f"{name} ({_transform_name(view)})" if view.transform else name


def _transform_name(view: View) -> str:
    return view.transform if isinstance(view.transform, str) else getattr(view.transform, "__qualname__", "?")


def _same_pass(view: View, other: View) -> bool:
    if view.transform != other.transform or not _share_weights(view.embedder, other.embedder):
        return False
    configs = [each.config for each in (view.embedder, other.embedder) if isinstance(each, Encoder)]
    if any(config.centering != "none" for config in configs):  # What is read together is of length 1 already.
        return False
    alike: dict[str, Any] = {"readout": "hidden", "pooling": "last", "layer": -1, "truncate_dim": None}
    first, second = (replace(config, normalize=False, **alike) for config in configs)
    return first == second


def _share_weights(view: Embedder, other: Embedder) -> bool:
    if not (isinstance(view, Encoder) and isinstance(other, Encoder)):
        return False
    ours, theirs = (list(map(id, each.model.parameters())) for each in (view, other))
    return ours == theirs


def _share_folder(view: Embedder, other: Embedder) -> bool:
    """Whether two views differ in their settings alone."""
    same = isinstance(view, Encoder) and isinstance(other, Encoder) and view.statistics is other.statistics
    return same and _share_weights(view, other)


def _with_settings(encoder: "Encoder | MultiViewEncoder", settings: Mapping[str, Any] | None) -> Embedder:
    if settings is None:
        return encoder
    assert isinstance(encoder, Encoder)
    return encoder.replace(**{name: getattr(EncoderConfig.from_dict(settings), name) for name in setting_names()})


def _check_fingerprint(encoder: MultiViewEncoder, folder: Path, record: Mapping[str, Any], saved: Vectors) -> None:
    distance = relative_distance(encoder.fingerprint(), saved)
    limit = tolerances(record["dtype"], encoder.dtype_name).fingerprint
    if not distance <= limit:
        raise FingerprintError(
            f"{folder} does not give the vectors it was saved with (relative distance {distance:.3g}, allowed "
            f"{limit:g}): a view has other weights. Restore them or combine again."
        )
