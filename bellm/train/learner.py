"""One step: from examples to gradients of an encoder's trainable weights.

Shapes: B rows, K candidates of a row, R = B K answers.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bellm.backbone import adapters
from bellm.encoder import Encoder
from bellm.engine.plan import held_tokens, suitable_tokens
from bellm.engine.proof import packed
from bellm.errors import NoOpWarning
from bellm.train.examples import Example
from bellm.train.gradients import accumulate
from bellm.train.objectives import Grl, Objective, Written, embedded
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
    ) -> None:
        """Prepare an encoder some of whose parameters want gradients.

        Args:
            encoder: As it embeds; the learner changes its weights' gradients and nothing else.
            objective: The loss of a batch.
            processes: Those that learn together; None for those that were started together.
            autocast: Dtype of matrix products whose weights are kept in a wider one.
            chunk_tokens: Most tokens of one forward pass; None for what suits the hardware.
            max_held_tokens: From how many tokens on a step runs in cached chunks; None for what memory holds.
        """
        self.encoder = encoder
        self.objective = objective
        self.processes = processes or Processes()
        self.autocast = autocast
        self.chunk_tokens = chunk_tokens or suitable_tokens(encoder.model)
        self.max_held_tokens = held_tokens(encoder.model) if max_held_tokens is None else max_held_tokens
        self.parameters = {name: each for name, each in encoder.model.named_parameters() if each.requires_grad}

    def learn(self, examples: Sequence[Example], seed: int) -> Learned:
        """Add the gradient of the objective on these examples to every trainable weight.

        The gradient is that of the whole batch, however it is cut into chunks and shared among processes.

        Raises:
            BellmError: The objective needs other examples.
        """
        world, rank = self.processes.world, self.processes.rank
        parts = [_part(examples, other, world) for other in range(world)]
        causal = self._causal()
        with self._at_work(self.encoder.model, causal):
            vectors = vectors_of(self.encoder, parts[rank], self.chunk_tokens)
            works = [vectors]
            if isinstance(self.objective, Grl):
                works.append(answers_of(self.encoder, causal, self.objective.prompt, parts[rank], self.chunk_tokens))

            def loss(answers: Sequence[Tensor]) -> Tensor:
                first = len(vectors.chunks)
                sizes = [sum(len(one.texts) for one in part) for part in parts]
                joined = self.processes.joined(vectors.joined(answers[:first]), sizes)
                batch = embedded(list(zip(joined, parts, strict=True)))
                if not isinstance(self.objective, Grl):
                    return self.objective(batch)
                return self.objective.joint(batch, self._written(works[1], answers[first:], causal, parts))

            return self._accumulate(works, loss, seed)

    def adapt(self, examples: Sequence[Example], seed: int, *, share: float, layers: Sequence[int]) -> Learned:
        """Add the gradient of masked next-token prediction on these examples' texts; see `adaptation`.

        Args:
            examples: Rows whose texts are read, without any prompt.
            seed: Of what is masked.
            share: Of the tokens that are masked.
            layers: Which layers are open.
        """
        own = _part(examples, self.processes.rank, self.processes.world)
        encoder = self.encoder
        if tuple(layers) != encoder.settings.bidirectional:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NoOpWarning)  # A map on its way.
                encoder = encoder.replace(bidirectional=layers, verify=False)
        with self._at_work(encoder.model):
            work = masked_of(encoder, own, share, seed, self.chunk_tokens)
            total = self.processes.total(len(work.order))
            return self._accumulate([work], lambda answers: torch.cat(list(answers)).sum() / total, seed)

    def _accumulate(self, works: Sequence[Work], loss: Callable[[Sequence[Tensor]], Tensor], seed: int) -> Learned:
        num_tokens = sum(work.num_tokens for work in works)
        chunks = [chunk for work in works for chunk in work.chunks]
        value = accumulate(chunks, loss, seed=seed, cached=num_tokens > self.max_held_tokens)
        self.processes.add_gradients(self.parameters.values())
        return Learned(float(value), num_tokens, sum(work.tokens.num_truncated for work in works))

    def _written(
        self, work: Work, answers: Sequence[Tensor], causal: PreTrainedModel, parts: Sequence[Sequence[Example]]
    ) -> Written:
        sum_R = work.joined(answers)
        count_R = torch.tensor([end - start for start, end in work.tokens.spans], device=sum_R.device)
        reference_R = reference_of(causal, work, self.chunk_tokens)
        sizes = [sum(len(one.texts) - 1 for one in part) for part in parts]
        columns = self.processes.joined(torch.stack([sum_R, sum_R / count_R, reference_R], 1), sizes)
        return Written(*torch.cat(columns).view(sum(map(len, parts)), -1, 3).unbind(2))

    def _causal(self) -> PreTrainedModel:
        with self.encoder.causal() as model:
            return model

    @contextmanager
    def _at_work(self, *models: PreTrainedModel) -> Iterator[None]:
        twin = packed(self.encoder.model).twin
        with (
            torch.autocast(self.encoder.device.type, self.autocast, enabled=self.autocast is not None),
            adapters.at_work(*models, *([twin.model] if twin else [])),
        ):
            yield


def _part(examples: Sequence[Example], rank: int, world: int) -> Sequence[Example]:
    """A process's share: those of all, end to end, are the batch."""
    return examples[len(examples) * rank // world : len(examples) * (rank + 1) // world]
