"""One step: from examples to gradients of an encoder's trainable weights.

Shapes: B rows, K candidates of a row, R = B K answers, M masked tokens.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bellm.backbone import adapters
from bellm.backbone.architecture import get_layers
from bellm.encoder import Encoder
from bellm.engine.concurrency import num_concurrent_batches
from bellm.engine.memory import default_batch_tokens, max_graph_tokens
from bellm.engine.packing_check import check_packing
from bellm.errors import NoOpWarning
from bellm.train.chunked_forward import (
    ChunkedForward,
    check_response_rows,
    forward_masked_tokens,
    forward_responses,
    forward_texts,
    reference_responses,
)
from bellm.train.distributed import Distributed
from bellm.train.embedded_batch import ResponseLogProbs, make_embedded_batch
from bellm.train.examples import Example
from bellm.train.fsdp import FSDPRoot
from bellm.train.gradients import accumulate_gradients
from bellm.train.objectives import GRL, Objective


@dataclass(frozen=True)
class StepResult:
    """What a step was."""

    loss: float
    """Of the whole batch."""
    num_tokens: int
    """Of all rows of this process; 0 where another one counts them."""
    num_truncated: int


class TrainStep:
    """Gives the trainable weights of an encoder their gradients."""

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
        """Prepare an encoder some of whose parameters want gradients.

        Args:
            encoder: As it embeds; the learner changes its weights' gradients and nothing else, unless `sharded`.
            objective: The loss of a batch.
            distributed: Those that learn together; None for those that were started together.
            autocast: Dtype of matrix products whose weights are kept in a wider one.
            chunk_tokens: Most tokens of one forward pass; None for what suits the hardware.
            max_held_tokens: From how many tokens on a step runs in cached chunks; None for what memory holds.
            gradient_checkpointing: Keep the states between layers and compute those inside again: for texts so long
                that a chunk of one does not fit. Texts then run in padded batches.
            sharded: Leave each process a part of every weight; see `Sharded`. The encoder is of no other use then, and
                texts run in padded batches.
        """
        self.encoder = self._adapted = encoder
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
        self.packs = not (gradient_checkpointing or sharded)
        # Chunks at once share the processor's caches.
        self.chunk_tokens = chunk_tokens or default_batch_tokens(encoder.model) // num_concurrent_batches(encoder.model)
        self.max_held_tokens = max_graph_tokens(encoder.model) if max_held_tokens is None else max_held_tokens
        self.parameters = {name: each for name, each in encoder.model.named_parameters() if each.requires_grad}

    def learn(self, examples: Sequence[Example], seed: int) -> StepResult:
        """Add the gradient of the objective on these examples to every trainable weight.

        The gradient is that of the whole batch, however it is cut into chunks and shared among processes.

        Raises:
            BellmError: The objective needs other examples.
        """
        parts = self._parts(examples)
        own = parts[self.distributed.rank % len(parts)]
        sizes = [sum(len(one.texts) for one in part) for part in parts]
        grl = self.objective if isinstance(self.objective, GRL) else None
        if grl:
            check_response_rows(examples)
        stacked = getattr(self.objective, "all_layers", False)
        causal = self._causal() if grl else self.encoder.model
        with self._at_work(self.encoder.model, causal):
            vectors = forward_texts(self.encoder, own, self.chunk_tokens, packs=self.packs, all_layers=stacked)
            writing = _Writing.of(self.encoder, causal, grl, own, self.chunk_tokens) if grl else None

            def loss(answers: Sequence[Tensor]) -> Tensor:
                first = len(vectors.chunks)
                all_gather = self._joined(vectors.all_gather(answers[:first]), sizes)
                batch = make_embedded_batch(list(zip(all_gather, parts, strict=True)))
                if not (grl and writing):
                    return self.objective(batch)
                candidates = [size - len(part) for size, part in zip(sizes, parts, strict=True)]
                columns = self._joined(writing.columns(answers[first:]), candidates)
                return grl.joint(batch, ResponseLogProbs(*torch.cat(columns).view(len(examples), -1, 3).unbind(2)))

            works = [vectors, writing.work] if writing else [vectors]
            return self._accumulate(works, loss, seed, counts=self._counts(parts))

    def adapt(
        self, examples: Sequence[Example], seed: int, *, mask_probability: float, layers: Sequence[int]
    ) -> StepResult:
        """Add the gradient of masked next-token prediction on these examples' texts; see `adaptation`.

        Args:
            examples: Rows whose texts are read, without any prompt.
            seed: Of what is masked.
            mask_probability: Of the tokens that are masked.
            layers: Which layers are open; where weights are shared out, those of the encoder.
        """
        parts = self._parts(examples)
        encoder = self._opened(tuple(layers))
        own = self.distributed.rank % len(parts)
        with self._at_work(encoder.model):
            work = forward_masked_tokens(
                encoder, parts, own, mask_probability, seed, self.chunk_tokens, packs=self.packs
            )

            def mean(answers: Sequence[Tensor]) -> Tensor:
                losses_M = torch.cat(list(answers))
                own_12 = torch.stack([losses_M.sum(), losses_M.new_tensor(len(losses_M))])[None]
                sum_and_count = torch.cat(self._joined(own_12, [1] * len(parts))).sum(0)
                return sum_and_count[0] / sum_and_count[1]

            return self._accumulate([work], mean, seed, counts=self._counts(parts))

    def _accumulate(
        self, works: Sequence[ChunkedForward], loss: Callable[[Sequence[Tensor]], Tensor], seed: int, *, counts: bool
    ) -> StepResult:
        num_tokens = sum(work.num_tokens for work in works)
        own = [chunk for work in works for chunk in work.chunks]
        cached = num_tokens > self.max_held_tokens
        chunks = own
        if self.sharded:
            chunks, cached = self.sharded.chunks(own), self.distributed.any(cached)

        def exact(answers: Sequence[Tensor]) -> Tensor:
            with torch.autocast(self.encoder.device.type, enabled=False):
                value = loss(answers[: len(own)])
            return value if counts else value.detach() + 0 * value

        value = accumulate_gradients(
            chunks,
            exact,
            # Processes drop out different inputs: a step has fewer chunks, and torch takes 32 bits of a seed.
            seed=seed + 1_000_003 * self.distributed.rank,
            cached=cached,
            concurrent=self._abreast(works),
            parameters=list(self.parameters.values()),
        )
        if not self.sharded:
            self.distributed.add_gradients(self.parameters.values())
        num_truncated = sum(work.tokens.num_truncated for work in works)
        return StepResult(float(value), num_tokens * counts, num_truncated * counts)

    def _abreast(self, works: Sequence[ChunkedForward]) -> int:
        """How many chunks at once; it does not hang on free memory, which must not decide a rounding."""
        alone = adapters.has_dropout(self.encoder.model) or not all(work.concurrent for work in works)
        return 1 if alone else min(num_concurrent_batches(self.encoder.model), torch.get_num_threads())

    def _parts(self, examples: Sequence[Example]) -> list[Sequence[Example]]:
        """Each process's share; those of all, end to end, are the batch.

        A batch of fewer rows than processes goes whole to each of them, and counts in the first alone.
        """
        world_size = self.distributed.world_size if len(examples) >= self.distributed.world_size else 1
        ends = [len(examples) * rank // world_size for rank in range(world_size + 1)]
        return [examples[start:end] for start, end in pairwise(ends)]

    def _counts(self, parts: Sequence[Sequence[Example]]) -> bool:
        """Whether this process has a part in the gradient."""
        return len(parts) > 1 or self.distributed.is_main

    def _joined(self, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """The numbers of all processes, where each part of the batch has so many rows."""
        return [own] if len(sizes) == 1 else self.distributed.all_gather(own, sizes)

    def _opened(self, layers: tuple[int, ...]) -> Encoder:
        """The encoder with these layers open: the one of the step before, where they are the same."""
        if layers != self._adapted.config.bidirectional:
            assert not self.sharded
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoOpWarning)  # A map on its way.
                self._adapted = self.encoder.replace(bidirectional=layers, verify=False)
        return self._adapted

    def _causal(self) -> PreTrainedModel:
        with self.encoder.causal() as model:
            return model

    @contextmanager
    def _at_work(self, *models: PreTrainedModel) -> Iterator[None]:
        twin = check_packing(models[0]).twin if self.packs else None
        with (
            torch.autocast(
                self.encoder.device.type,
                self.autocast,
                enabled=self.autocast is not None,
                cache_enabled=not self.sharded,  # It would hold what is to be whole in its turn only.
            ),
            adapters.training_adapters(*models, *([twin.model] if twin else [])),
            _checkpointed(models) if self.gradient_checkpointing else nullcontext(),
        ):
            yield


@contextmanager
def _checkpointed(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Layers set checkpoints where they think that they are in training; what is inside them stays as it is."""
    layers = [layer.module for model in models for layer in get_layers(model)]
    for layer in layers:
        layer.training = True
    try:
        yield
    finally:
        for layer in layers:
            layer.training = False


@dataclass(frozen=True)
class _Writing:
    """Log-probabilities of all candidates, under way."""

    work: ChunkedForward
    reference_R: Tensor

    @classmethod
    def of(
        cls, encoder: Encoder, causal: PreTrainedModel, grl: GRL, examples: Sequence[Example], chunk_tokens: int
    ) -> "_Writing":
        work = forward_responses(encoder, causal, grl.prompt, examples, chunk_tokens)
        return cls(work, reference_responses(causal, work, chunk_tokens))

    def columns(self, answers: Sequence[Tensor]) -> Tensor:
        """The columns of `Written` for each candidate, (R, 3)."""
        sum_R = self.work.all_gather(answers)
        count_R = torch.tensor([end - start for start, end in self.work.tokens.spans], device=sum_R.device)
        return torch.stack([sum_R, sum_R / count_R, self.reference_R], 1)
