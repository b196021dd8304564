"""Run a decoder over packed texts: laid end to end without padding, common prefixes computed once.

transformers lets an attention backend bring its own attention function and then builds no masks. Ours attends along
the paths of a `Packing`. Layers below the first open one are causal: a token's state there depends only on the tokens
before it, so texts with a common prefix share its states. From the first open layer on every text has rows of its own,
and in the last layer only the pooled rows have queries.

In the parallel variant a layer runs on its own branch's states; those of the other branch are kept until the branches
are added, so that both together take as much work as one stack.

Shapes: M tokens of the decoder's input, N tokens of a layer's input, P tokens of the shared prefix, D width, C rows
that take logits, V vocabulary.
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
from bellm.backbone.hooks import Arguments, shared_copy
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
    """A copy of a model that takes packed texts and shares the model's weights.

    Attributes:
        num_shared: Number of layers, from the first, that compute common prefixes once.
        depth: Number of layers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Copy the model and hook its layers.

        Raises:
            NotPackableError: Something in the model does not know where a text ends.
        """
        if has_token_prepending(model):
            raise NotPackableError("Token Prepending hands states from token to token")
        layers = get_layers(model)
        attention = str(get_text_config(model)._attn_implementation)  # type: ignore[attr-defined]
        _check_packable(layers, attention)
        opened = get_open_layers(model)
        self.depth = len(layers)
        self.num_shared = opened[0] if opened else self.depth
        self.windows = tuple(map(_window, layers))
        self.model = shared_copy(model)
        has_branches = remove_branches(self.model)
        AttentionInterface.register(f"{_NAME}_{attention}", ATTENTION_FUNCTIONS[attention])
        get_text_config(self.model)._attn_implementation_internal = f"{_NAME}_{attention}"  # type: ignore[attr-defined]
        for layer in get_layers(self.model):
            select_input = _LayerInputHook(layer.index, self.num_shared, has_branches, layer.index in opened)
            layer.module.register_forward_pre_hook(select_input, with_kwargs=True)
            layer.module.forward = _SkippableForward(layer)
            if has_branches and layer.index == self.depth - 1:
                layer.module.register_forward_hook(_add_branches)
        get_decoder(self.model).register_forward_hook(_select_logit_rows)

    def prefill(self, batch: PackedBatch, stop: int) -> SharedPrefix:
        """Compute the prefix of all texts, given as a batch of one text, up to layer `stop`."""
        run = ForwardPass(batch, None, min(self.num_shared, stop), self.windows, batch.shared)
        states_PD = self._run(run)
        keys, values = zip(*run.key_values, strict=True) if run.key_values else ((), ())
        if stop > self.num_shared:
            return SharedPrefix(keys, values, states_PD, run.other_branch_ND)
        return SharedPrefix(keys, values, run.add_branches(states_PD), None)

    def states(
        self, batch: PackedBatch, prefix: SharedPrefix | None, stop: int, resume: LayerState | None = None
    ) -> tuple[Tensor, LayerState | None]:
        """States before layer `stop`, or the final, normed ones for the depth: (rows of the last layer range, D).

        Args:
            batch: Packed texts.
            prefix: The prefix of all of them, where it was computed before.
            stop: Layer before which to stop.
            resume: Input of a layer for this batch, at most of the first open one; layers below it do not run.

        Returns:
            The states, and the input of the first open layer, if there is one below `stop`.
        """
        run = ForwardPass(batch, prefix, stop, self.windows, batch.shared)
        if resume:
            assert resume.layer <= self.num_shared
            run.start, run.start_states_ND = resume.layer, resume.states_ND
        states = run.add_branches(self._run(run))
        return states, None if run.first_open_input_ND is None else LayerState(self.num_shared, run.first_open_input_ND)

    def logits(self, batch: PackedBatch, rows_C: Tensor) -> Tensor:
        """Logits at some rows of the last layer range, (C, V), with whatever the model does around its head."""
        check_lm_head(self.model)
        run = ForwardPass(batch, None, self.depth, self.windows, batch.shared, logit_rows_C=rows_C)
        with _active(run):
            logits_1CV: Tensor = self.model(**_inputs(batch)).logits
        return logits_1CV[0]

    def _run(self, run: ForwardPass) -> Tensor:
        with _active(run):
            try:
                states: Tensor = get_decoder(self.model)(**_inputs(run.batch)).last_hidden_state[0]
            except StopForward as stopped:
                states = stopped.tensors[0]
        return states


@contextmanager
def _active(run: ForwardPass) -> Iterator[None]:
    token = current_pass.set(run)
    try:
        yield
    finally:
        current_pass.reset(token)


def _inputs(batch: PackedBatch) -> dict[str, Any]:
    ids_1M, positions_1M = batch.ids_M[None], batch.positions_M[None]
    return {"input_ids": ids_1M, "position_ids": positions_1M, "use_cache": False, "return_dict": True}


def _select_logit_rows(decoder: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Forward hook of the decoder: its head gets only the rows that take logits."""
    rows_C = current_pass.get().logit_rows_C
    return output if rows_C is None else select_states(output, (0, rows_C))


@dataclass
class _LayerInputHook:
    """Forward pre-hook of a decoder layer: replaces its input by the rows of the layer range that it is in."""

    layer_index: int
    num_shared: int
    has_branches: bool
    is_open: bool

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        run = current_pass.get()
        run.layer = self.layer_index
        if self.layer_index < run.start:
            return args, kwargs
        call = _Call(args, kwargs, len(run.batch.ids_M))
        states = call.states
        if self.layer_index == run.start:
            embeddings = _rows(states, run.current.rows_N)
            states = embeddings if run.start_states_ND is None else run.start_states_ND
            run.other_branch_ND = embeddings if self.has_branches else None
        if self.layer_index == self.num_shared and run.batch.whole:
            # From here on every text has rows of its own: copy those of common prefixes.
            run.first_open_input_ND, run.current = states, run.batch.whole
            prefix = run.prefix
            states = _whole_texts(run, prefix.states_PD if prefix else None, states)
            if run.other_branch_ND is not None:
                other_PD = prefix.other_branch_PD if prefix else None
                run.other_branch_ND = _whole_texts(run, other_PD, run.other_branch_ND)
        if self.layer_index == run.stop:
            raise StopForward(states)
        if run.other_branch_ND is not None and self.is_open == run.other_branch_is_open:
            # This layer is in the other branch: its states and those of the last layer change places.
            states, run.other_branch_ND, run.other_branch_is_open = run.other_branch_ND, states, not self.is_open
        rows_N = run.current.rows_N
        if self.layer_index == run.stop - 1 and run.batch.pooled:
            # Keys and values of all rows first, then queries, MLP and all of the pooled rows alone.
            run.all_key_values = _keys_values(run, layer, call.on(states, rows_N))
            run.current = run.batch.pooled
            pooled_N = run.current.rows_N
            states = _rows(states, pooled_N)
            run.other_branch_ND = None if run.other_branch_ND is None else _rows(run.other_branch_ND, pooled_N)
            rows_N = pooled_N if rows_N is None else _rows(rows_N, pooled_N)
        return call.on(states, rows_N)


def _add_branches(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Forward hook of the last layer: adds the other branch."""
    run = current_pass.get()
    states = output if isinstance(output, Tensor) else output[0]
    states, run.other_branch_ND = run.add_branches(states), None
    return states if isinstance(output, Tensor) else (states, *output[1:])


class _SkippableForward:
    """Forward of a decoder layer that does nothing in a pass that starts above the layer."""

    def __init__(self, layer: DecoderLayer) -> None:
        self._layer_index = layer.index
        self._own = vars(layer.module).get("forward")  # Of libraries that place a layer's weights as it runs.
        self._module = ref(layer.module)  # A cycle would keep the weights until the garbage is collected.
        self._in_tuple = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._layer_index < current_pass.get().start:
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

    def on(self, states_ND: Tensor, rows_N: Tensor | None) -> Arguments:
        """The same call on these states, with the rows `rows_N` of every other argument that has one for each token."""
        args, kwargs = self.args[1:], {name: value for name, value in self.kwargs.items() if name != "hidden_states"}
        if rows_N is not None:
            args, kwargs = self._select(args, rows_N), self._select(kwargs, rows_N)
        return ((states_ND[None], *args), kwargs) if self.args else (args, {**kwargs, "hidden_states": states_ND[None]})

    def _select(self, value: Any, rows_N: Tensor) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(self._select(item, rows_N) for item in value)
        if isinstance(value, dict):
            return {name: self._select(item, rows_N) for name, item in value.items()}
        if isinstance(value, Tensor) and value.ndim > 1 and value.shape[:2] == (1, self.num_tokens):
            return value.index_select(1, rows_N)
        return value


def _rows(tensor: Tensor, rows_N: Tensor | None) -> Tensor:
    return tensor if rows_N is None else tensor.index_select(0, rows_N)


def _whole_texts(run: ForwardPass, prefix_PD: Tensor | None, states_ND: Tensor) -> Tensor:
    return _rows(states_ND if prefix_PD is None else torch.cat([prefix_PD, states_ND]), run.current.rows_N)


def _keys_values(run: ForwardPass, layer: nn.Module, call: Arguments) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer, and nothing else of it."""
    run.stop_at_keys = True
    try:
        layer.forward(*call[0], **call[1])
    except StopForward as stopped:
        keys, values = stopped.tensors
        return keys, values
    finally:
        run.stop_at_keys = False
    raise NotPackableError("its attention does not go through transformers' attention interface")


def _check_packable(layers: Sequence[DecoderLayer], attention: str) -> None:
    if attention not in ATTENTION_FUNCTIONS:
        raise NotPackableError(f"attention={attention!r} leaves padding out in its own way")
    for layer in layers:
        if len(layer.attention) > 1:
            raise NotPackableError(f"layer {layer.index} has {len(layer.attention)} attention modules")
        if not layer.attention or not (layer.kind == "full" or layer.kind.startswith("sliding:")):
            raise NotPackableError(
                f"layer {layer.index} is of kind {layer.kind}, which does not know where a text ends"
            )


def _window(layer: DecoderLayer) -> int | None:
    hooks = layer.attention[0]._forward_pre_hooks.values()
    opened = any(isinstance(hook, BidirectionalMaskHook) and not hook.keep_window for hook in hooks)
    return None if opened or layer.kind == "full" else int(layer.kind.removeprefix("sliding:"))
