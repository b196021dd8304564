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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from bellm.backbone.architecture import DecoderLayer, get_decoder, get_layers, get_text_config
from bellm.backbone.attention import BidirectionalMaskHook, get_open_layers, remove_branches
from bellm.backbone.hooks import shared_copy
from bellm.backbone.packed_attention import ATTENTION_FUNCTIONS
from bellm.backbone.packed_batch import (
    ForwardPass,
    LayerState,
    NotPackableError,
    PackedBatch,
    SharedPrefix,
    StopForward,
    current_pass,
)
from bellm.backbone.states import check_lm_head, select_states
from bellm.backbone.token_prepending import has_token_prepending

_NAME = "bellm_packed"


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
        AttentionInterface.register(f"{_NAME}_{how}", ATTENTION_FUNCTIONS[how])
        get_text_config(self.model)._attn_implementation_internal = f"{_NAME}_{how}"  # type: ignore[attr-defined]
        for layer in get_layers(self.model):
            before = _Before(layer.index, self.num_shared, branches, layer.index in opened)
            layer.module.register_forward_pre_hook(before, with_kwargs=True)
            layer.module.forward = _Skippable(layer)
            if branches and layer.index == self.depth - 1:
                layer.module.register_forward_hook(_added)
        get_decoder(self.model).register_forward_hook(_predicting)

    def prefill(self, batch: PackedBatch, stop: int) -> SharedPrefix:
        """Compute what all texts begin with, given as a batch of one text."""
        run = ForwardPass(batch, None, min(self.num_shared, stop), self.windows, batch.shared)
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
        run = ForwardPass(batch, beginning, stop, self.windows, batch.shared)
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
        run = ForwardPass(batch, None, self.depth, self.windows, batch.shared, predicts_C=rows_C)
        with _under_way(run):
            logits_1CV: Tensor = self.model(**_inputs(batch)).logits
        return logits_1CV[0]

    def _run(self, run: ForwardPass) -> Tensor:
        with _under_way(run):
            try:
                states: Tensor = get_decoder(self.model)(**_inputs(run.batch)).last_hidden_state[0]
            except StopForward as news:
                states = news.tensors[0]
        return states


@contextmanager
def _under_way(run: ForwardPass) -> Iterator[None]:
    token = current_pass.set(run)
    try:
        yield
    finally:
        current_pass.reset(token)


def _inputs(batch: PackedBatch) -> dict[str, Any]:
    ids_1M, positions_1M = batch.ids_M[None], batch.positions_M[None]
    return {"input_ids": ids_1M, "position_ids": positions_1M, "use_cache": False, "return_dict": True}


def _predicting(decoder: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Forward hook of the decoder: hands its head what is to be predicted from."""
    rows_C = current_pass.get().predicts_C
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
        run = current_pass.get()
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
            raise StopForward(states)
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
    run = current_pass.get()
    states = output if isinstance(output, Tensor) else output[0]
    states, run.other_branch_ND = run.sum_of(states), None
    return states if isinstance(output, Tensor) else (states, *output[1:])


class _Skippable:
    """Forward of a decoder layer, left out in a pass that starts behind it."""

    def __init__(self, layer: DecoderLayer) -> None:
        self._number = layer.index
        self._own = vars(layer.module).get("forward")  # Of libraries that place a layer's weights as it runs.
        self._module = ref(layer.module)  # A cycle would keep the weights until the garbage is collected.
        self._in_tuple = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._number < current_pass.get().start:
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


def _keys(run: ForwardPass, layer: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer, and nothing else of it."""
    run.stops_at_keys = True
    try:
        layer.forward(*call[0], **call[1])
    except StopForward as news:
        keys, values = news.tensors
        return keys, values
    finally:
        run.stops_at_keys = False
    raise NotPackableError("its attention does not go through transformers' attention interface")


def _refuse(layers: Sequence[DecoderLayer], how: str) -> None:
    if how not in ATTENTION_FUNCTIONS:
        raise NotPackableError(f"attention={how!r} leaves padding out in its own way")
    for layer in layers:
        if len(layer.attention) > 1:
            raise NotPackableError(f"layer {layer.index} has {len(layer.attention)} attention modules")
        if not layer.attention or not (layer.kind == "full" or layer.kind.startswith("sliding:")):
            raise NotPackableError(
                f"layer {layer.index} is of kind {layer.kind}, which does not know where a text ends"
            )


def _window(layer: DecoderLayer) -> int | None:
    opened = any(
        isinstance(hook, BidirectionalMaskHook) and not hook.keep_window
        for hook in layer.attention[0]._forward_pre_hooks.values()
    )
    return None if opened or layer.kind == "full" else int(layer.kind.removeprefix("sliding:"))
