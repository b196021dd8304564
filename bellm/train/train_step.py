"""One training step: the gradient of an objective on a batch, accumulated over chunks and processes.

Shapes: B rows, K candidates of a row, R = B K responses, M masked tokens.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bellm.backbone import adapters
from bellm.backbone.architecture import get_layers
from bellm.backbone.packed_model import PackedModel
from bellm.encoder import Encoder
from bellm.engine import memory_budget
from bellm.engine.concurrency import num_concurrent_batches
from bellm.engine.memory_budget import free_bytes, max_graph_tokens
from bellm.engine.packing_check import check_packing
from bellm.errors import BellmError, NoOpWarning
from bellm.tensors.similarity import is_constant
from bellm.train.chunked_forward import ChunkedForward, Chunker
from bellm.train.distributed import Distributed, FSDPRoot
from bellm.train.embedded_batch import EmbeddedBatch, ResponseLogProbs, check_response_rows, make_embedded_batch
from bellm.train.examples import Example
from bellm.train.gradients import chunk_outputs
from bellm.train.objectives import Objective, needs_of
from bellm.train.recipe import defined_in, user_errors

_WIDTH = 8192  # Of random vectors: no model is wider, so that whatever width an objective asks for is there.


@dataclass(frozen=True)
class StepResult:
    """Loss and token counts of a step."""

    loss: float
    """Of the whole batch."""
    num_tokens: int
    """Of all rows of this process; 0 where another one counts them."""
    num_truncated: int
    is_constant: bool | None = None
    """Whether different texts of the batch all have the same vector; None where no vectors are made."""


class TrainStep:
    """Accumulates gradients for the trainable weights of an encoder."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        *,
        distributed: Distributed | None = None,
        autocast: torch.dtype | None = None,
        chunk_tokens: int | None = None,
        max_held_tokens: int | None = None,
        gradient_checkpointing: bool = False,
        sharded: bool = False,
    ) -> None:
        """Prepare an encoder some of whose parameters require gradients.

        Args:
            encoder: As it embeds; a step changes its weights' gradients and nothing else, unless `sharded`.
            objective: The loss of a batch.
            distributed: The processes that train together; None for those that were launched together.
            autocast: Dtype of matrix products whose weights are kept in a wider one.
            chunk_tokens: Most tokens of one forward pass; None for what suits the hardware.
            max_held_tokens: Tokens of a step above which its gradients are cached; None for what memory holds.
            gradient_checkpointing: Keep the states between layers and recompute those inside: for texts so long that a
                chunk of one does not fit.
            sharded: Leave each process a part of every weight; see `FSDPRoot`. The encoder is of no other use then, and
                texts run in padded batches.
        """
        self.encoder = self._mntp_encoder = encoder
        self.objective = objective
        self.distributed = distributed or Distributed()
        self.autocast = autocast
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            # Before transformers 5.23 it had another name.
            names = "activation_checkpointing_enable", "gradient_checkpointing_enable"
            enable = next(getattr(encoder.model, name) for name in names if hasattr(encoder.model, name))
            enable({"use_reentrant": False})
        self.sharded = FSDPRoot(encoder.model, self.distributed) if sharded else None
        # Concurrent chunks share the processor's caches.
        if chunk_tokens is None:
            device = encoder.device
            suits = memory_budget.chunk_tokens(encoder.model, device.type, encoder.model.dtype, free_bytes(device))
            chunk_tokens = suits // num_concurrent_batches(encoder.model)
        self.chunker = Chunker(encoder, chunk_tokens, packs=not sharded)
        self.max_held_tokens = max_graph_tokens(encoder.model) if max_held_tokens is None else max_held_tokens
        self.parameters = {
            name: parameter for name, parameter in encoder.model.named_parameters() if parameter.requires_grad
        }

    def learn(self, examples: Sequence[Example], seed: int) -> StepResult:
        """Add the gradient of the objective on these examples to every trainable weight.

        The gradient is that of the whole batch, however it is split into chunks and over processes.
        """
        parts, needs = self._parts(examples), needs_of(self.objective)
        own = parts[self.distributed.rank % len(parts)]
        num_texts = [sum(len(example.texts) for example in part) for part in parts]
        prompt = needs.response_prompt
        if prompt is not None:
            check_response_rows(examples)
        models = [self.encoder.model, *([] if prompt is None else [self._causal])]
        with self._training(*models):
            texts = self.chunker.texts(own, all_layers=needs.all_layers)
            forwards, responses, reference_R, constant = [texts], None, None, False
            if prompt is not None:
                responses, reference_R = self.chunker.responses(self._causal, prompt, own)
                forwards.append(responses)

            def loss(outputs: Sequence[Tensor]) -> Tensor:
                num_chunks = len(texts.chunks)
                nonlocal constant
                vectors = self.distributed.all_gather(texts.in_row_order(outputs[:num_chunks]), num_texts)
                constant = _all_the_same(vectors, examples)
                log_probs = None
                if responses is not None and reference_R is not None:
                    sum_R = responses.in_row_order(outputs[num_chunks:])
                    lengths_R = sum_R.new_tensor([end - start for start, end in responses.tokens.spans])
                    columns_R3 = torch.stack([sum_R, sum_R / lengths_R, reference_R], 1)
                    num_responses = [size - len(part) for size, part in zip(num_texts, parts, strict=True)]
                    gathered_R3 = torch.cat(self.distributed.all_gather(columns_R3, num_responses))
                    log_probs = ResponseLogProbs(*gathered_R3.view(len(examples), -1, 3).unbind(2))
                return self._loss(make_embedded_batch(list(zip(vectors, parts, strict=True)), log_probs))

            return replace(self._accumulate(forwards, loss, seed, parts), is_constant=constant)

    def adapt(
        self, examples: Sequence[Example], seed: int, *, mask_probability: float, layers: Sequence[int]
    ) -> StepResult:
        """Add the gradient of masked next-token prediction on these examples' texts; see `token_prediction`.

        Args:
            examples: Rows whose texts are read, without any prompt.
            seed: Of the choice of masked tokens and of dropout.
            mask_probability: Share of the tokens that are masked.
            layers: Which layers are open; where weights are sharded, those of the encoder.
        """
        parts = self._parts(examples)
        encoder = self._with_layers(tuple(layers))
        rank = self.distributed.rank % len(parts)
        with self._training(encoder.model):
            forward = replace(self.chunker, encoder=encoder).masked_tokens(parts, rank, mask_probability, seed)

            def mean(outputs: Sequence[Tensor]) -> Tensor:
                losses_M = torch.cat(list(outputs))
                own_12 = torch.stack([losses_M.sum(), losses_M.new_tensor(len(losses_M))])[None]
                sum_and_count = torch.cat(self.distributed.all_gather(own_12, [1] * len(parts))).sum(0)
                return sum_and_count[0] / sum_and_count[1]

            return self._accumulate([forward], mean, seed, parts)

    def _accumulate(
        self,
        forwards: Sequence[ChunkedForward],
        loss: Callable[[Sequence[Tensor]], Tensor],
        seed: int,
        parts: Sequence[Sequence[Example]],
    ) -> StepResult:
        counts = len(parts) > 1 or self.distributed.is_main
        num_tokens = sum(forward.num_tokens for forward in forwards)
        chunks = own = [chunk for forward in forwards for chunk in forward.chunks]
        cached = num_tokens > self.max_held_tokens
        if self.sharded:
            chunks, cached = self.sharded.chunks(own), self.distributed.any(cached)
        # Free memory has no say in how many run at once, because that decides the order of sums.
        alone = adapters.has_dropout(self.encoder.model) or not all(forward.concurrent for forward in forwards)
        num_concurrent = 1 if alone else min(num_concurrent_batches(self.encoder.model), torch.get_num_threads())

        with chunk_outputs(
            chunks,
            # Processes drop out different inputs: a step has fewer chunks, and torch takes 32 bits of a seed.
            seed=seed + 1_000_003 * self.distributed.rank,
            cached=cached,
            num_concurrent=num_concurrent,
            parameters=list(self.parameters.values()),
        ) as outputs:
            with torch.autocast(self.encoder.device.type, enabled=False):
                value = loss(outputs[: len(own)])
            # A process whose batch another one counts takes part in every collective, with a gradient of zero.
            value = value if counts else value.detach() + 0 * value
            value.backward()  # type: ignore[no-untyped-call]
        if not self.sharded:
            self.distributed.sum_gradients(self.parameters.values())
        num_truncated = sum(forward.tokens.num_truncated for forward in forwards)
        return StepResult(float(value.detach()), num_tokens * counts, num_truncated * counts)

    def _loss(self, batch: EmbeddedBatch) -> Tensor:
        """The objective's loss, which has to be one number with a gradient."""
        with user_errors(self.objective):
            value: Any = self.objective(batch)
        if isinstance(value, Tensor) and value.numel() == 1 and value.requires_grad:
            return value.squeeze()
        came = f"{value!r:.60}"
        if isinstance(value, Tensor):
            came = f"one of shape {tuple(value.shape)}, {'with' if value.requires_grad else 'without'} a gradient"
        file, line = defined_in(self.objective)
        what = "an objective gives a tensor of one number, with a gradient"
        raise BellmError(f"{file}, line {line}: {what}; this one gave {came}.")

    @cached_property
    def _causal(self) -> PreTrainedModel:
        """The causal model on the same weights, one for all steps, so that it is checked once whether it packs."""
        with self.encoder.causal() as model:
            return model

    def _parts(self, examples: Sequence[Example]) -> list[Sequence[Example]]:
        """Each process's part of the batch, in the order of ranks.

        A batch of fewer rows than processes goes whole to each of them, and counts in the first alone.
        """
        world_size = self.distributed.world_size if len(examples) >= self.distributed.world_size else 1
        ends = [len(examples) * rank // world_size for rank in range(world_size + 1)]
        return [examples[start:end] for start, end in pairwise(ends)]

    def _with_layers(self, layers: tuple[int, ...]) -> Encoder:
        """The encoder with these layers open; reused while they stay the same."""
        if layers != self._mntp_encoder.config.bidirectional:
            assert not self.sharded
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoOpWarning)  # Fewer layers than the final map has.
                self._mntp_encoder = self.encoder.replace(bidirectional=layers, verify=False)
        return self._mntp_encoder

    @contextmanager
    def _training(self, *models: PreTrainedModel) -> Iterator[None]:
        checks = [check_packing(model) for model in models] if self.chunker.packs else []
        packed = [check.packed_model for check in checks if check.packed_model]
        with (
            torch.autocast(
                self.encoder.device.type,
                self.autocast,
                enabled=self.autocast is not None,
                cache_enabled=not self.sharded,  # It would keep gathered weights in memory.
            ),
            adapters.training_adapters(*models, *(each.model for each in packed)),
            _checkpointed(models, packed) if self.gradient_checkpointing else nullcontext(),
        ):
            yield


def _all_the_same(vectors: Sequence[Tensor], examples: Sequence[Example]) -> bool:
    """Whether all vectors (rows, D), or those of the last layer (rows, J, D), are the same, and their texts are not."""
    rows = torch.cat([part.detach() if part.dim() == 2 else part[:, -1].detach() for part in vectors])
    return len({text for example in examples for text in example.texts}) > 1 and is_constant(rows.float().cpu().numpy())


def check_objective(objective: Objective, examples: Sequence[Example]) -> None:
    """Let an objective of `bellm.train.objectives` refuse rows by random vectors, before a model is loaded."""
    needs = needs_of(objective)
    if needs.response_prompt is not None:
        check_response_rows(examples)
    elif type(objective).__module__ == needs_of.__module__:
        rows = sum(len(example.texts) for example in examples)
        shape = (rows, 2, _WIDTH) if needs.all_layers else (rows, _WIDTH)
        vectors = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        objective(make_embedded_batch([(vectors, examples)]))


@contextmanager
def _checkpointed(models: Sequence[PreTrainedModel], packed: Sequence[PackedModel]) -> Iterator[None]:
    """Put the layers themselves, and not their modules, into training mode, in which they checkpoint."""
    layers = [layer.module for model in models for layer in get_layers(model)]
    for layer in layers:
        layer.training = True
    for each in packed:
        each.gradient_checkpointing = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False
        for each in packed:
            each.gradient_checkpointing = False
