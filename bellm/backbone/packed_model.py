"""Run a decoder over packed texts: laid end to end without padding, common prefixes computed once.

Layers below the first open one are causal: a token's state there depends only on the tokens before it, so texts with a
common prefix share its states. From the first open layer on every text has rows of its own, and in the last layer only
the pooled rows have queries. In the parallel variant a layer runs on its own branch's states, and those of the other
branch are kept until the branches are added, so that both together take as much work as one stack.

Shapes: M tokens of the decoder's input, N tokens of a layer's input, P tokens of the shared prefix, D width, C rows
that take logits, V vocabulary.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel

from bellm.backbone.architecture import DecoderLayer, get_decoder, get_layers, get_text_config, longrope_short_context
from bellm.backbone.attention import get_open_layers, has_open_window, remove_branches
from bellm.backbone.hooks import Arguments, shared_copy
from bellm.backbone.packed_pass import (
    ATTENTION_FUNCTIONS,
    AttentionKernel,
    ForwardPass,
    LayerState,
    NotPackableError,
    PackedBatch,
    SharedPrefix,
    StopForward,
    TapKey,
    Tapped,
    attention_kernels,
    current_pass,
)
from bellm.backbone.routing import find_routers, routing_weights
from bellm.backbone.states import check_lm_head, input_device, select_states
from bellm.backbone.token_prepending import has_token_prepending

_NAME = "bellm_packed"


class PackedModel:
    """A copy of a model that takes packed texts and shares the model's weights."""

    def __init__(self, model: PreTrainedModel, kernel: AttentionKernel | None = None) -> None:
        """Copy the model and hook its layers.

        Args:
            model: A decoder, open or not.
            kernel: What computes attention; None for the first of `attention_kernels`.

        Raises:
            NotPackableError: Something in the model does not know where a text ends.
        """
        layers = get_layers(model)
        attention = attention_implementation(model)
        _check_packable(model, layers, attention)
        opened = get_open_layers(model)
        self.kernel = kernel or attention_kernels(attention, input_device(model))[0]
        self.gradient_checkpointing = False
        """Keep only the states between layers for autograd, and compute the rest again on the way back."""
        self.depth = len(layers)
        self.short_context = longrope_short_context(model)
        self.num_shared = opened[0] if opened else self.depth  # Layers, from the first, with common prefixes once.
        self.model = shared_copy(model)
        self.has_branches = remove_branches(self.model)
        AttentionInterface.register(f"{_NAME}_{attention}", ATTENTION_FUNCTIONS[attention])
        get_text_config(self.model)._attn_implementation_internal = f"{_NAME}_{attention}"  # type: ignore[attr-defined]
        for layer in get_layers(self.model):
            layer.module.forward = _LayerForward(layer, self, is_open=layer.index in opened)
        get_decoder(self.model).register_forward_hook(_select_logit_rows)
        self.num_routers = len(routers := find_routers(self.model))
        for number, router in enumerate(routers):
            router.module.register_forward_hook(partial(_tap_router, number, router.output))

    def prefill(self, batch: PackedBatch, stop: int, taps: Collection[TapKey] = ()) -> SharedPrefix:
        """Compute the prefix of all texts, given as a batch of one text, up to layer `stop`."""
        run = self._pass(batch, None, min(self.num_shared, stop), taps=frozenset(taps), key_values=[])
        states_PD = self._run(run)
        assert run.key_values is not None
        keys, values = zip(*run.key_values, strict=True) if run.key_values else ((), ())
        if stop > self.num_shared:
            return SharedPrefix(keys, values, states_PD, run.other_branch_ND, run.tapped)
        states_PD = run.add_branches(states_PD)
        run.tap(("state", stop), states_PD)
        return SharedPrefix(keys, values, states_PD, None, run.tapped)

    def states(
        self, batch: PackedBatch, prefix: SharedPrefix | None, stop: int, resume: LayerState | None = None
    ) -> tuple[Tensor, LayerState | None]:
        """States before layer `stop`, or the final, normed ones for the depth: (rows of the last layer range, D).

        Returns also the input of the first open layer, if there is one below `stop`.

        Args:
            batch: Packed texts.
            prefix: The prefix of all of them, where it was computed before.
            stop: Layer before which to stop.
            resume: Input of a layer for this batch, at most of the first open one; layers below it do not run.
        """
        run = self._pass(batch, prefix, stop)
        if resume:
            assert resume.layer <= self.num_shared
            run.start, run.start_states_ND = resume.layer, resume.states_ND
        states = run.add_branches(self._run(run))
        return states, None if run.first_open_input_ND is None else LayerState(self.num_shared, run.first_open_input_ND)

    def tapped(self, batch: PackedBatch, prefix: SharedPrefix | None, stop: int, taps: Collection[TapKey]) -> Tapped:
        """What is tapped of a pass that stops before layer `stop`, each (rows of the last layer range, width)."""
        run = self._pass(batch, prefix, stop, taps=frozenset(taps))
        run.tap(("state", stop), run.add_branches(self._run(run)))
        return run.tapped

    def logits(self, batch: PackedBatch, prefix: SharedPrefix | None, rows_C: Tensor) -> Tensor:
        """Logits at some rows of the last layer range, (C, V), with whatever the model does around its head.

        Where a causal model has the prefix of all texts, rows count its tokens too, first.
        """
        check_lm_head(self.model)
        run = self._pass(batch, prefix, self.depth, logit_rows_C=rows_C)
        logits_1CV: Tensor = _call(self.model, run).logits
        return logits_1CV[0]

    def _pass(self, batch: PackedBatch, prefix: SharedPrefix | None, stop: int, **options: Any) -> ForwardPass:
        return ForwardPass(
            batch, prefix, stop, self.kernel, batch.shared, checkpoints=self.gradient_checkpointing, **options
        )

    def _run(self, run: ForwardPass) -> Tensor:
        try:
            states: Tensor = _call(get_decoder(self.model), run).last_hidden_state[0]
        except StopForward as stopped:
            states = stopped.tensors[0]
        return states


def _call(module: nn.Module, run: ForwardPass) -> Any:
    ids_1M, positions_1M = run.batch.ids_M[None], run.batch.positions_M[None]
    token = current_pass.set(run)
    try:
        return module(input_ids=ids_1M, position_ids=positions_1M, use_cache=False, return_dict=True)
    finally:
        current_pass.reset(token)


def _select_logit_rows(decoder: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    """Forward hook of the decoder: its head gets only the rows that take logits."""
    run = current_pass.get()
    if run.logit_rows_C is None:
        return output
    if run.prefix:
        output.last_hidden_state = torch.cat([run.prefix.states_PD[None], output.last_hidden_state], 1)
    return select_states(output, (0, run.logit_rows_C))


def _tap_router(number: int, output_index: int | None, router: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Forward hook of a router."""
    run = current_pass.get()
    if ("router", number) in run.taps and not run.stop_at_keys:
        run.tap(("router", number), routing_weights(router, args, output, output_index))


class _LayerForward:
    """Forward of a decoder layer in a packed pass: on the rows of its layer range, or not at all below the start."""

    def __init__(self, layer: DecoderLayer, packed: PackedModel, *, is_open: bool) -> None:
        self._index, self._window, self._is_open = layer.index, _window(layer), is_open
        self._is_last, self._num_shared = layer.index == packed.depth - 1, packed.num_shared
        self._has_branches = packed.has_branches
        self._own = vars(layer.module).get("forward")  # Of libraries that place a layer's weights as it runs.
        self._module = ref(layer.module)  # A cycle would keep the weights until the garbage is collected.
        self._in_tuple = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = current_pass.get()
        run.layer, run.window = self._index, self._window
        states: Tensor = args[0] if args else kwargs["hidden_states"]
        if self._index < run.start:
            return (states,) if self._in_tuple else states
        call = self._select_input(run, states[0], (args, kwargs))
        if run.checkpoints and torch.is_grad_enabled():
            # What the pass is at by now: on the way back it is at its end.
            output = checkpoint(self._forward_in, replace(run), call, use_reentrant=False)
        else:
            output = self._forward(call)
        self._in_tuple = isinstance(output, tuple)
        if not (self._is_last and self._has_branches):
            return output
        states = run.add_branches(output[0] if self._in_tuple else output)
        run.other_branch_ND = None
        return (states, *output[1:]) if self._in_tuple else states

    def _forward_in(self, run: ForwardPass, call: Arguments) -> Any:
        token = current_pass.set(run)
        try:
            return self._forward(call)
        finally:
            current_pass.reset(token)

    def _forward(self, call: Arguments) -> Any:
        module = self._module()
        assert module is not None
        return self._own(*call[0], **call[1]) if self._own else type(module).forward(module, *call[0], **call[1])

    def _select_input(self, run: ForwardPass, states_MD: Tensor, call: Arguments) -> Arguments:
        """The layer's call on the states of the rows of the layer range that it is in."""
        states = states_MD
        if self._index == run.start:
            embeddings = _rows(states, run.current.rows_N)
            states = embeddings if run.start_states_ND is None else run.start_states_ND
            run.other_branch_ND = embeddings if self._has_branches else None
        if self._index == self._num_shared and run.batch.whole:
            # From here on every text has rows of its own: copy those of common prefixes.
            run.first_open_input_ND, run.current = states, run.batch.whole
            prefix = run.prefix
            states = _whole_texts(run, prefix.states_PD if prefix else None, states)
            if run.other_branch_ND is not None:
                other_PD = prefix.other_branch_PD if prefix else None
                run.other_branch_ND = _whole_texts(run, other_PD, run.other_branch_ND)
            for key, values_ND in run.tapped.items():
                run.tapped[key] = _whole_texts(run, prefix.tapped[key] if prefix else None, values_ND)
        if ("state", self._index) in run.taps and self._index < run.stop:
            run.tap(("state", self._index), run.add_branches(states))
        if self._index == run.stop:
            raise StopForward(states)
        if run.other_branch_ND is not None and self._is_open == run.other_branch_is_open:
            # This layer is in the other branch: its states and those of the last layer change places.
            states, run.other_branch_ND, run.other_branch_is_open = run.other_branch_ND, states, not self._is_open
        rows_N = run.current.rows_N
        if self._index == run.stop - 1 and run.batch.pooled:
            # Keys and values of all rows first, then queries, MLP and all of the pooled rows alone.
            run.all_key_values = self._keys_values(run, _on_states(call, states, rows_N))
            run.current = run.batch.pooled
            pooled_N = run.current.rows_N
            states = _rows(states, pooled_N)
            run.other_branch_ND = None if run.other_branch_ND is None else _rows(run.other_branch_ND, pooled_N)
            run.tapped = {key: _rows(values_ND, pooled_N) for key, values_ND in run.tapped.items()}
            rows_N = pooled_N if rows_N is None else _rows(rows_N, pooled_N)
        return _on_states(call, states, rows_N)

    def _keys_values(self, run: ForwardPass, call: Arguments) -> tuple[Tensor, Tensor]:
        """Keys and values of the layer, and nothing else of it."""
        run.stop_at_keys = True
        try:
            self._forward(call)
        except StopForward as stopped:
            keys, values = stopped.tensors
            return keys, values
        finally:
            run.stop_at_keys = False
        raise NotPackableError("its attention does not go through transformers' attention interface")


def _on_states(call: Arguments, states_ND: Tensor, rows_N: Tensor | None) -> Arguments:
    """A layer's call on other states, with the rows `rows_N` of every other argument that has one for each token."""
    args, kwargs = call
    num_tokens = len(current_pass.get().batch.ids_M)

    def select(value: Any) -> Any:
        has_tokens = isinstance(value, Tensor) and value.ndim > 1 and value.shape[:2] == (1, num_tokens)
        return value.index_select(1, rows_N) if has_tokens else value

    others = args[1:], {name: value for name, value in kwargs.items() if name != "hidden_states"}
    others = others if rows_N is None else tree_map(select, others)
    if args:
        return (states_ND[None], *others[0]), others[1]
    return others[0], {**others[1], "hidden_states": states_ND[None]}


def _rows(tensor: Tensor, rows_N: Tensor | None) -> Tensor:
    return tensor if rows_N is None else tensor.index_select(0, rows_N)


def _whole_texts(run: ForwardPass, prefix_PD: Tensor | None, states_ND: Tensor) -> Tensor:
    return _rows(states_ND if prefix_PD is None else torch.cat([prefix_PD, states_ND]), run.current.rows_N)


def attention_implementation(model: PreTrainedModel) -> str:
    """Name of the attention function of transformers that a model runs with."""
    return str(get_text_config(model)._attn_implementation)  # type: ignore[attr-defined]


def _check_packable(model: PreTrainedModel, layers: Sequence[DecoderLayer], attention: str) -> None:
    if has_token_prepending(model):
        raise NotPackableError("Token Prepending hands states from token to token")
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
    windowless = layer.kind == "full" or has_open_window(layer.attention[0])
    return None if windowless else int(layer.kind.removeprefix("sliding:"))
