"""One step: from examples to gradients of an encoder's trainable weights.

Shapes: B rows, K candidates of a row, R = B K answers.
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
from bellm.backbone.layers import layers_of
from bellm.encoder import Encoder
from bellm.engine.plan import held_tokens, suitable_tokens
from bellm.engine.proof import packed
from bellm.errors import NoOpWarning
from bellm.train.embedded import Written, embedded
from bellm.train.examples import Example
from bellm.train.gradients import accumulate
from bellm.train.objectives import Grl, Objective
from bellm.train.processes import Processes
from bellm.train.work import Work, answers_of, masked_of, reference_of, vectors_of


@dataclass(frozen=True)
class Learned:
    """What a step was."""

    loss: float
    num_tokens: int
    """Of all rows of this process."""
    num_truncated: int


class Learner:
    """Gives the trainable weights of an encoder their gradients."""

    def __init__(
        self,
        encoder: Encoder,
        objective: Objective,
        *,
        processes: Processes | None = None,
        autocast: torch.dtype | None = None,
        chunk_tokens: int | None = None,
        max_held_tokens: int | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Prepare an encoder some of whose parameters want gradients.

        Args:
            encoder: As it embeds; the learner changes its weights' gradients and nothing else.
            objective: The loss of a batch.
            processes: Those that learn together; None for those that were started together.
            autocast: Dtype of matrix products whose weights are kept in a wider one.
            chunk_tokens: Most tokens of one forward pass; None for what suits the hardware.
            max_held_tokens: From how many tokens on a step runs in cached chunks; None for what memory holds.
            gradient_checkpointing: Keep the states between layers and compute those inside again: for texts so long
                that a chunk of one does not fit. Texts then run in padded batches.
        """
        self.encoder = encoder
        self.objective = objective
        self.processes = processes or Processes()
        self.autocast = autocast
        self.chunk_tokens = chunk_tokens or suitable_tokens(encoder.model)
        self.max_held_tokens = held_tokens(encoder.model) if max_held_tokens is None else max_held_tokens
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            # Before transformers 5.23 it had another name.
            names = "activation_checkpointing_enable", "gradient_checkpointing_enable"
            enable = next(getattr(encoder.model, name) for name in names if hasattr(encoder.model, name))
            enable({"use_reentrant": False})
        self.parameters = {name: each for name, each in encoder.model.named_parameters() if each.requires_grad}

    def learn(self, examples: Sequence[Example], seed: int) -> Learned:
        """Add the gradient of the objective on these examples to every trainable weight.

        The gradient is that of the whole batch, however it is cut into chunks and shared among processes.

        Raises:
            BellmError: The objective needs other examples.
        """
        parts = self._parts(examples)
        own = parts[self.processes.rank % len(parts)]
        grl = self.objective if isinstance(self.objective, Grl) else None
        stacked = getattr(self.objective, "all_layers", False)
        causal = self._causal() if grl else self.encoder.model
        with self._at_work(self.encoder.model, causal):
            packs = not self.gradient_checkpointing
            vectors = vectors_of(self.encoder, own, self.chunk_tokens, packs=packs, all_layers=stacked)
            writing = _Writing.of(self.encoder, causal, grl, own, self.chunk_tokens) if grl else None

            def loss(answers: Sequence[Tensor]) -> Tensor:
                first = len(vectors.chunks)
                joined = self._joined(vectors.joined(answers[:first]), parts, lambda one: len(one.texts))
                batch = embedded(list(zip(joined, parts, strict=True)))
                if not (grl and writing):
                    return self.objective(batch)
                columns = self._joined(writing.columns(answers[first:]), parts, lambda one: len(one.texts) - 1)
                return grl.joint(batch, Written(*torch.cat(columns).view(len(examples), -1, 3).unbind(2)))

            works = [vectors, writing.work] if writing else [vectors]
            return self._accumulate(works, loss, seed, together=len(parts) > 1)

    def adapt(self, examples: Sequence[Example], seed: int, *, share: float, layers: Sequence[int]) -> Learned:
        """Add the gradient of masked next-token prediction on these examples' texts; see `adaptation`.

        Args:
            examples: Rows whose texts are read, without any prompt.
            seed: Of what is masked.
            share: Of the tokens that are masked.
            layers: Which layers are open.
        """
        parts = self._parts(examples)
        own, together = parts[self.processes.rank % len(parts)], len(parts) > 1
        encoder = self.encoder
        if tuple(layers) != encoder.settings.bidirectional:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoOpWarning)  # A map on its way.
                encoder = encoder.replace(bidirectional=layers, verify=False)
        with self._at_work(encoder.model):
            work = masked_of(encoder, own, share, seed, self.chunk_tokens)
            total = self.processes.total(len(work.order)) if together else len(work.order)
            mean = lambda answers: torch.cat(list(answers)).sum() / total  # noqa: E731
            return self._accumulate([work], mean, seed, together=together)

    def _accumulate(
        self, works: Sequence[Work], loss: Callable[[Sequence[Tensor]], Tensor], seed: int, *, together: bool
    ) -> Learned:
        num_tokens = sum(work.num_tokens for work in works)
        chunks = [chunk for work in works for chunk in work.chunks]

        def exact(answers: Sequence[Tensor]) -> Tensor:
            with torch.autocast(self.encoder.device.type, enabled=False):
                return loss(answers)

        value = accumulate(chunks, exact, seed=seed, cached=num_tokens > self.max_held_tokens)
        if together:
            self.processes.add_gradients(self.parameters.values())
        return Learned(float(value), num_tokens, sum(work.tokens.num_truncated for work in works))

    def _parts(self, examples: Sequence[Example]) -> list[Sequence[Example]]:
        """Each process's share; those of all, end to end, are the batch.

        A batch of fewer rows than processes goes whole to each of them, and gradients are not added up.
        """
        world = self.processes.world if len(examples) >= self.processes.world else 1
        ends = [len(examples) * rank // world for rank in range(world + 1)]
        return [examples[start:end] for start, end in pairwise(ends)]

    def _joined(self, own: Tensor, parts: Sequence[Sequence[Example]], rows: Callable[[Example], int]) -> list[Tensor]:
        """The numbers of all processes, where each example has so many rows."""
        if len(parts) == 1:
            return [own]
        return self.processes.joined(own, [sum(map(rows, part)) for part in parts])

    def _causal(self) -> PreTrainedModel:
        with self.encoder.causal() as model:
            return model

    @contextmanager
    def _at_work(self, *models: PreTrainedModel) -> Iterator[None]:
        twin = None if self.gradient_checkpointing else packed(self.encoder.model).twin
        with (
            torch.autocast(self.encoder.device.type, self.autocast, enabled=self.autocast is not None),
            adapters.at_work(*models, *([twin.model] if twin else [])),
            _checkpointed(models) if self.gradient_checkpointing else nullcontext(),
        ):
            yield


@contextmanager
def _checkpointed(models: Sequence[PreTrainedModel]) -> Iterator[None]:
    """Layers set checkpoints where they think that they are in training; what is inside them stays as it is."""
    layers = [layer.module for model in models for layer in layers_of(model)]
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

    work: Work
    reference_R: Tensor

    @classmethod
    def of(
        cls, encoder: Encoder, causal: PreTrainedModel, grl: Grl, examples: Sequence[Example], chunk_tokens: int
    ) -> "_Writing":
        work = answers_of(encoder, causal, grl.prompt, examples, chunk_tokens)
        return cls(work, reference_of(causal, work, chunk_tokens))

    def columns(self, answers: Sequence[Tensor]) -> Tensor:
        """The columns of `Written` for each candidate, (R, 3)."""
        sum_R = self.work.joined(answers)
        count_R = torch.tensor([end - start for start, end in self.work.tokens.spans], device=sum_R.device)
        return torch.stack([sum_R, sum_R / count_R, self.reference_R], 1)
