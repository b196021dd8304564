"""Run a decoder layer by layer over all texts, with the states of one layer in memory and no more.

A layer is called as the decoder would call it: its masks, positions and rotary embeddings come from a skeleton of the
decoder whose layers hand on what they get. Batches hold texts of one length, so that there is no padding.

Shapes: B texts of a batch, L tokens of each, D width, N tokens of a batch, I inputs of a matrix.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bellm.backbone.architecture import get_layers
from bellm.backbone.attention import get_branch
from bellm.backbone.hooks import Arguments, shared_copy
from bellm.backbone.leakage import sample_token_ids
from bellm.backbone.states import input_device, token_states, without_autocast
from bellm.backbone.weight_matrices import WeightMatrix
from bellm.errors import LayerError
from bellm.tensors.similarity import tolerances


def equal_length_batches(rows: Sequence[Sequence[int]], max_tokens: int) -> list[Tensor]:
    """Group different rows of token ids by their length, each batch (B, L) with at most `max_tokens` or one row."""
    by_length: defaultdict[int, list[Sequence[int]]] = defaultdict(list)
    for row in dict.fromkeys(map(tuple, rows)):
        by_length[len(row)].append(row)
    batches = []
    for length, group in sorted(by_length.items()):
        size = max(1, max_tokens // length)
        batches += [torch.tensor(group[start : start + size]) for start in range(0, len(group), size)]
    return batches


class LayerwisePass:
    """One pass of a model over batches of token ids, in which every layer waits to be told to run."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Tensor]) -> None:
        """Compute the input of the first layer.

        Raises:
            LayerError: The layers cannot be run one by one: something besides the states goes from one to the next.
        """
        self._model, self._layers = model, get_layers(model)
        self._batches = [ids_BL.to(input_device(model)) for ids_BL in batches]
        self._skeleton = shared_copy(model)
        self._in_tuple: dict[int, bool] = {}
        for layer in get_layers(self._skeleton):
            layer.module._forward_hooks.clear()
            layer.module._forward_pre_hooks.clear()
            layer.module.forward = partial(self._hand_on, layer.index)
        self._wanted = self.index = 0
        """The layer that runs next."""
        with torch.no_grad(), without_autocast(model):
            self._check()
            self._states = [_states_of(self._call(ids_BL)) for ids_BL in self._batches]

    @torch.no_grad()
    def observe(self, matrices: Sequence[WeightMatrix], on_input: Callable[[str, Tensor], None]) -> None:
        """Run the next layer for what goes into its matrices: `on_input` gets the name of one and its rows (N, I)."""
        branch = get_branch(self._layers[self.index].module)

        def hand_over(name: str, _: nn.Module, args: tuple[Any, ...]) -> None:
            rows_NI = args[0].flatten(0, -2)
            on_input(name, rows_NI if branch is None else rows_NI.chunk(2)[int(branch)])

        with ExitStack() as hooks, without_autocast(self._model):
            for matrix in matrices:
                hook = partial(hand_over, matrix.name)
                hooks.callback(matrix.module.register_forward_pre_hook(hook).remove)
            for number in range(len(self._batches)):
                self._output(number)

    @torch.no_grad()
    def advance(self, on_states: Callable[[Tensor, Tensor], None] = lambda *_: None) -> None:
        """Run the next layer, whose output is the input of the one after it.

        `on_states` gets the states of each batch before and after, (B, L, D).
        """
        with without_autocast(self._model):
            for number in range(len(self._batches)):
                after = self._output(number)
                on_states(self._states[number], after)
                self._states[number] = after
        self.index += 1

    def _output(self, number: int) -> Tensor:
        """Output of the next layer for a batch."""
        self._wanted = self.index
        args, kwargs = self._call(self._batches[number])
        return self._run(args, kwargs, self._states[number])

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], states: Tensor) -> Tensor:
        module = self._layers[self._wanted].module
        output = module(states, *args[1:], **kwargs) if args else module(**{**kwargs, "hidden_states": states})
        first: Tensor = output if isinstance(output, Tensor) else output[0]
        return first

    def _call(self, ids_BL: Tensor) -> Arguments:
        """How the decoder calls the wanted layer, on states that are not the layer's."""
        try:
            token_states(self._skeleton, ids_BL, torch.ones_like(ids_BL))
        except _ReachedLayer as reached:
            return reached.call
        raise LayerError(f"Layer {self._wanted} of {type(self._model).__name__} did not run.")

    def _hand_on(self, index: int, *args: Any, **kwargs: Any) -> Any:
        if index == self._wanted:
            raise _ReachedLayer((args, kwargs))
        states = _states_of((args, kwargs))
        return (states,) if self._in_tuple[index] else states

    def _check(self) -> None:
        """Make sure that layers one by one give what the model gives, and learn how they return their states.

        Two texts show what goes from layer to layer by another way: it would be that of the other text.
        """
        sample_1L = torch.tensor([sample_token_ids(self._model)], device=input_device(self._model))
        samples = [sample_1L, sample_1L.flip(1)]
        outputs: list[Tensor] = []

        def record(index: int, _: nn.Module, args: Any, output: Any) -> None:
            self._in_tuple[index] = not isinstance(output, Tensor)
            if index == len(self._layers) - 1:
                outputs.append(output if isinstance(output, Tensor) else output[0])

        with ExitStack() as hooks:
            for layer in self._layers:
                hooks.callback(layer.module.register_forward_hook(partial(record, layer.index)).remove)
            for ids_1L in samples:
                token_states(self._model, ids_1L, torch.ones_like(ids_1L))
        refusal = f"The layers of {type(self._model).__name__} cannot be run one by one"
        try:
            states = [_states_of(self._call(ids_1L)) for ids_1L in samples]
            for index in range(len(self._layers)):
                self._wanted = index
                calls = map(self._call, samples)
                states = [self._run(*call, each) for call, each in zip(calls, states, strict=True)]
        except (RuntimeError, TypeError, IndexError, KeyError, AttributeError) as error:
            raise LayerError(f"{refusal}: {' '.join(str(error).split())[:240]}.") from error
        limit = tolerances(self._model.dtype).states
        if any((each - wanted).norm() > limit * wanted.norm() for each, wanted in zip(states, outputs, strict=True)):
            raise LayerError(f"{refusal}: they hand on more than their states.")
        self._wanted = 0


class _ReachedLayer(Exception):  # noqa: N818 - control flow, not an error
    """Ends a pass of the skeleton with the call of a layer."""

    def __init__(self, call: Arguments) -> None:
        self.call = call


def _states_of(call: Arguments) -> Tensor:
    states: Tensor = call[0][0] if call[0] else call[1]["hidden_states"]
    return states
