"""Run a decoder over texts laid end to end: no padding, and nothing computed twice.

transformers lets an attention backend bring its own attention function and then builds no masks. Ours attends along
the paths of a `Packing`. Layers below the first open one are causal: a token's state there depends on what stands
before it and on nothing else, so texts that begin alike share their beginning. From the first open layer on every text
has rows of its own, and in the last layer only pooled rows ask.

With the parallel reading a layer works on its own branch's states. The other branch's wait aside until the branches are
added, so that both together take what one stack takes.

Shapes: M tokens that the decoder is given, N of them that a layer works on, H heads, G key heads, E width of a head,
D width, C chosen rows, V vocabulary.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from bellm.backbone.architecture import DecoderLayer, get_decoder, get_layers, get_text_config
from bellm.backbone.attention import BidirectionalMaskHook, get_open_layers, remove_branches
from bellm.backbone.hooks import shared_copy
from bellm.backbone.states import check_lm_head, select_states
from bellm.backbone.token_prepending import has_token_prepending
from bellm.errors import LayerError
from bellm.tensors.packing import MaskSpec, Packing

_NAME = "bellm_packed"


class NotPackableError(LayerError):
    """A model whose texts cannot be laid end to end; the message says why."""


@dataclass(frozen=True)
class LayerRange:
    """What the layers of one part of the stack work on."""

    rows_N: Tensor | None
    """Which of the decoder's tokens they are (for `pooled`, which of the stage before); None for all."""
    packing: Packing
    """The texts as paths through the beginning, if there is one, and these rows."""


@dataclass(frozen=True)
class PackedBatch:
    """What goes through the model in one forward pass."""

    ids_M: Tensor
    """The beginning's tokens, and those of the batch."""
    positions_M: Tensor
    shared: LayerRange
    """Up to the first open layer: every beginning once."""
    whole: LayerRange | None
    """From the first open layer on: every text in full. None where no layer opens, or the first does."""
    pooled: LayerRange | None
    """The last layer's queries; None where every state is wanted."""


@dataclass(frozen=True)
class SharedPrefix:
    """What all texts begin with, computed once: nothing that follows has an influence on it."""

    keys: tuple[Tensor, ...]
    """Keys of each layer below the first open one, (P, G, E)."""
    values: tuple[Tensor, ...]
    states_PD: Tensor
    """What the first open layer gets; the last states where no layer is open."""
    other_branch_PD: Tensor | None
    """Of the other branch, where there are two and a layer opens."""


@dataclass(frozen=True)
class LayerState:
    """How far the causal layers have brought a batch: the same for every model of the same weights that opens later."""

    layer: int
    states_ND: Tensor
    """What this layer gets, beginnings once and without the one of all texts."""


@dataclass
class _ForwardPass:
    """One forward pass under way."""

    batch: PackedBatch
    beginning: SharedPrefix | None
    stop: int
    """The layer before which to stop; the depth for the model's own end."""
    windows: tuple[int | None, ...]
    stage: LayerRange
    layer: int = 0
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Keys and values of the layers so far, without the beginning's."""
    answers_for: tuple[Tensor, Tensor] | None = None
    """Keys and values of all rows, while the pooled rows ask."""
    stops_at_keys: bool = False
    predicts_C: Tensor | None = None
    """Which of the last states go through the language-model head; None where there is no such end."""
    start: int = 0
    """The first layer to run."""
    entering_ND: Tensor | None = None
    """What the first layer to run gets; None for the token embeddings."""
    first_open_input_ND: Tensor | None = None
    """What has reached the first open layer, beginnings once."""
    other_branch_ND: Tensor | None = None
    """States of the branch that the layer under way is not of; None where there are no branches, or no more."""
    other_branch_is_open: bool = True

    def sum_of(self, states_ND: Tensor) -> Tensor:
        """Of both branches."""
        return states_ND if self.other_branch_ND is None else states_ND + self.other_branch_ND


class _StopForward(Exception):  # noqa: N818 - news, not an error
    """All that is wanted has been computed."""

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors


_pass: ContextVar[_ForwardPass] = ContextVar("pass")


class PackedModel:
    """A twin of a model that reads packed texts; it shares the model's weights.

    Attributes:
        num_shared: How many layers, from the first, share beginnings.
        depth: Number of layers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Make the twin.

        Raises:
            Unpackable: Something in the model does not know where a text ends.
        """
        if has_token_prepending(model):
            raise NotPackableError("Token Prepending hands states from token to token")
        layers = get_layers(model)
        how = str(get_text_config(model)._attn_implementation)  # type: ignore[attr-defined]
        _refuse(layers, how)
        opened = get_open_layers(model)
        self.depth = len(layers)
        self.num_shared = opened[0] if opened else self.depth
        self.windows = tuple(_window(layer) for layer in layers)
        self.model = shared_copy(model)
        branches = remove_branches(self.model)
        AttentionInterface.register(f"{_NAME}_{how}", _ATTENTION[how])
        get_text_config(self.model)._attn_implementation_internal = f"{_NAME}_{how}"  # type: ignore[attr-defined]
        for layer in get_layers(self.model):
            before = _Before(layer.number, self.num_shared, branches, layer.number in opened)
            layer.module.register_forward_pre_hook(before, with_kwargs=True)
            layer.module.forward = _Skippable(layer)
            if branches and layer.number == self.depth - 1:
                layer.module.register_forward_hook(_added)
        get_decoder(self.model).register_forward_hook(_predicting)

    def prefill(self, batch: PackedBatch, stop: int) -> SharedPrefix:
        """Compute what all texts begin with, given as a batch of one text."""
        run = _ForwardPass(batch, None, min(self.num_shared, stop), self.windows, batch.shared)
        states_PD = self._run(run)
        keys, values = zip(*run.kept, strict=True) if run.kept else ((), ())
        if stop > self.num_shared:
            return SharedPrefix(keys, values, states_PD, run.other_branch_ND)
        return SharedPrefix(keys, values, run.sum_of(states_PD), None)

    def states(
        self, batch: PackedBatch, beginning: SharedPrefix | None, stop: int, known: "LayerState | None" = None
    ) -> tuple[Tensor, "LayerState | None"]:
        """States before layer `stop`, or the final, normed ones for the depth: (rows of the last stage, D).

        Args:
            batch: What goes through.
            beginning: What its texts begin with.
            stop: Layer before which to stop.
            known: How far the batch is known to come, at most to the first open layer: layers below are left out.

        Returns:
            The states, and what reached the first open layer, if one opened below `stop`.
        """
        run = _ForwardPass(batch, beginning, stop, self.windows, batch.shared)
        if known:
            assert known.layer <= self.num_shared
            run.start, run.entering_ND = known.layer, known.states_ND
        states = run.sum_of(self._run(run))
        return states, None if run.first_open_input_ND is None else LayerState(self.num_shared, run.first_open_input_ND)

    def logits(self, batch: PackedBatch, rows_C: Tensor) -> Tensor:
        """Logits at some rows of the last stage, (C, V), with whatever the model does around its head.

        Raises:
            BellmError: The model has no language-model head.
        """
        check_lm_head(self.model)
        run = _ForwardPass(batch, None, self.depth, self.windows, batch.shared, predicts_C=rows_C)
        with _under_way(run):
            logits_1CV: Tensor = self.model(**_inputs(batch)).logits
        return logits_1CV[0]

    def _run(self, run: _ForwardPass) -> Tensor:
        with _under_way(run):
            try:
                states: Tensor = get_decoder(self.model)(**_inputs(run.batch)).last_hidden_state[0]
            except _StopForward as news:
                states = news.tensors[0]
        return states


@contextmanager
def _under_way(run: _ForwardPass) -> Iterator[None]:
    token = _pass.set(run)
    try:
        yield
    finally:
        _pass.reset(token)


def _inputs(batch: PackedBatch) -> dict[str, Any]:
    ids_1M, positions_1M = batch.ids_M[None], batch.positions_M[None]
    return {"input_ids": ids_1M, "position_ids": positions_1M, "use_cache": False, "return_dict": True}


def _predicting(decoder: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Forward hook of the decoder: hands its head what is to be predicted from."""
    rows_C = _pass.get().predicts_C
    return output if rows_C is None else select_states(output, (0, rows_C))


@dataclass
class _Before:
    """Forward pre-hook of a decoder layer: gives it the rows of its stage."""

    number: int
    num_shared: int
    branches: bool
    is_open: bool

    def __call__(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        run = _pass.get()
        run.layer = self.number
        if self.number < run.start:
            return args, kwargs
        call = _Call(args, kwargs, len(run.batch.ids_M))
        states = call.states
        if self.number == run.start:
            embeddings = _rows(states, run.stage.rows_N)
            states = embeddings if run.entering_ND is None else run.entering_ND
            run.other_branch_ND = embeddings if self.branches else None
        if self.number == self.num_shared and run.batch.whole:
            run.first_open_input_ND = states
            run.stage = run.batch.whole
            begun, aside = (run.beginning.states_PD, run.beginning.other_branch_PD) if run.beginning else (None, None)
            states = _rows(_behind(begun, states), run.stage.rows_N)
            if run.other_branch_ND is not None:
                run.other_branch_ND = _rows(_behind(aside, run.other_branch_ND), run.stage.rows_N)
        if self.number == run.stop:
            raise _StopForward(states)
        if run.other_branch_ND is not None and self.is_open == run.other_branch_is_open:
            states, run.other_branch_ND, run.other_branch_is_open = run.other_branch_ND, states, not self.is_open
        rows_N = run.stage.rows_N
        if self.number == run.stop - 1 and run.batch.pooled:
            run.answers_for = _keys(run, layer, call.on(states, rows_N))
            run.stage = run.batch.pooled
            states = _rows(states, run.stage.rows_N)
            run.other_branch_ND = None if run.other_branch_ND is None else _rows(run.other_branch_ND, run.stage.rows_N)
            rows_N = run.stage.rows_N if rows_N is None else _rows(rows_N, run.stage.rows_N)
        return call.on(states, rows_N)


def _added(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Forward hook of the last layer: adds the other branch."""
    run = _pass.get()
    states = output if isinstance(output, Tensor) else output[0]
    states, run.other_branch_ND = run.sum_of(states), None
    return states if isinstance(output, Tensor) else (states, *output[1:])


class _Skippable:
    """Forward of a decoder layer, left out in a pass that starts behind it."""

    def __init__(self, layer: DecoderLayer) -> None:
        self._number = layer.number
        self._own = vars(layer.module).get("forward")  # Of libraries that place a layer's weights as it runs.
        self._module = ref(layer.module)  # A cycle would keep the weights until the garbage is collected.
        self._in_tuple = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._number < _pass.get().start:
            states = args[0] if args else kwargs["hidden_states"]
            return (states,) if self._in_tuple else states
        module = self._module()
        assert module is not None
        output = self._own(*args, **kwargs) if self._own else type(module).forward(module, *args, **kwargs)
        self._in_tuple = isinstance(output, tuple)
        return output


@dataclass(frozen=True)
class _Call:
    """Arguments of a decoder layer's call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    num_tokens: int

    @property
    def states(self) -> Tensor:
        states: Tensor = self.args[0] if self.args else self.kwargs["hidden_states"]
        return states[0]

    def on(self, states_ND: Tensor, rows_N: Tensor | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call on these states; whatever else has a row for each token gives those of these rows."""
        rest = self.args[1:] if self.args else (), {**self.kwargs, "hidden_states": None}
        args, kwargs = rest if rows_N is None else (self._part(rest[0], rows_N), self._part(rest[1], rows_N))
        if self.args:
            return (states_ND[None], *args), {name: value for name, value in kwargs.items() if name != "hidden_states"}
        return args, {**kwargs, "hidden_states": states_ND[None]}

    def _part(self, value: Any, rows_N: Tensor) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(self._part(item, rows_N) for item in value)
        if isinstance(value, dict):
            return {name: self._part(item, rows_N) for name, item in value.items()}
        if isinstance(value, Tensor) and value.ndim > 1 and value.shape[:2] == (1, self.num_tokens):
            return value.index_select(1, rows_N)
        return value


def _rows(tensor: Tensor, rows_N: Tensor | None) -> Tensor:
    return tensor if rows_N is None else tensor.index_select(0, rows_N)


def _behind(begun_PD: Tensor | None, states_ND: Tensor) -> Tensor:
    return states_ND if begun_PD is None else torch.cat([begun_PD, states_ND])


def _keys(run: _ForwardPass, layer: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer, and nothing else of it."""
    run.stops_at_keys = True
    try:
        layer.forward(*call[0], **call[1])
    except _StopForward as news:
        keys, values = news.tensors
        return keys, values
    finally:
        run.stops_at_keys = False
    raise NotPackableError("its attention does not go through transformers' attention interface")


def _refuse(layers: Sequence[DecoderLayer], how: str) -> None:
    if how not in _ATTENTION:
        raise NotPackableError(f"attention={how!r} leaves padding out in its own way")
    for layer in layers:
        if len(layer.attention) > 1:
            raise NotPackableError(f"layer {layer.number} has {len(layer.attention)} attention modules")
        if not layer.attention or not (layer.kind == "full" or layer.kind.startswith("sliding:")):
            raise NotPackableError(
                f"layer {layer.number} is of kind {layer.kind}, which does not know where a text ends"
            )


def _window(layer: DecoderLayer) -> int | None:
    opened = any(
        isinstance(hook, BidirectionalMaskHook) and not hook.keep_window
        for hook in layer.attention[0]._forward_pre_hooks.values()
    )
    return None if opened or layer.kind == "full" else int(layer.kind.removeprefix("sliding:"))


def _attention(base: Callable[..., Any] | None) -> Callable[..., tuple[Tensor, None]]:
    """An attention function of transformers for packed rows; `base` (None: the model's eager one) does padded ones."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if attention_mask is not None or len(query) != 1:
            raise NotPackableError("its attention wants a mask of its own")
        run = _pass.get()
        key_MGE, value_MGE = _seen(run, key[0].transpose(0, 1), value[0].transpose(0, 1))
        query_NHE = query[0].transpose(0, 1)
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        window = run.windows[run.layer]
        if sliding_window not in (None, window):
            raise NotPackableError(f"layer {run.layer} has windows of {window} and of {sliding_window}")
        reach = MaskSpec(bool(causal), window)
        packing = run.stage.packing
        if base is not None and query.device.type == "cpu" and kwargs.get("position_bias") is None:
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            return packing.attend(reach, query_NHE, key_MGE, value_MGE, scaling)[None], None
        function = base or sys.modules[type(module).__module__].eager_attention_forward

        def padded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
            if base is None:
                mask = query.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(query.dtype).min)
            answer: Tensor = function(
                module,
                query,
                key,
                value,
                mask,
                scaling=scaling,
                is_causal=False,
                sliding_window=sliding_window,
                **kwargs,
            )[0]
            return answer

        return packing.attend_with(padded, reach, query_NHE, key_MGE, value_MGE)[None], None

    return attention


def _seen(run: _ForwardPass, key_NGE: Tensor, value_NGE: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values that a layer's queries may see, the beginning's among them."""
    if run.answers_for:
        return run.answers_for
    run.kept.append((key_NGE, value_NGE))
    if run.beginning and run.stage is run.batch.shared:
        key_NGE = torch.cat([run.beginning.keys[run.layer], key_NGE])
        value_NGE = torch.cat([run.beginning.values[run.layer], value_NGE])
    if run.stops_at_keys:
        raise _StopForward(key_NGE, value_NGE)
    return key_NGE, value_NGE


_ATTENTION = {"sdpa": _attention(sdpa_attention_forward), "eager": _attention(None)}
