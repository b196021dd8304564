"""Label scoring: how likely a causal language model finds each label word after a prompt.

Shapes: N prompts, K labels, M content-free prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from bellm.backbone.states import check_lm_head
from bellm.encoder import Encoder
from bellm.engine.log_likelihood import answer_log_likelihoods
from bellm.engine.packing_check import check_packing
from bellm.engine.tokenization import fallback_token_id, warn_truncated
from bellm.errors import BellmError, BellmWarning, check_encoder, check_list, warn
from bellm.io.formats import is_blank, text_problem
from bellm.prompts import Rendered

_NEUTRAL = "Answer:"

Scores = NDArray[np.float64]
"""A number for each prompt and label, (N, K)."""


@dataclass(frozen=True)
class LabelScores:
    """Scores of labels, with counts."""

    scores_NK: Scores
    num_tokens: int
    """Of all prompts with their first label."""
    num_truncated: int
    """How many prompts were shortened."""


class LabelScorer:
    """Scores label words after prompts by an encoder's own causal language model."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        length_normalized: bool = False,
        separator: str = " ",
        max_batch_tokens: int | None = None,
    ) -> None:
        """Take the causal model of an encoder; its prompt, pooling and open layers play no part.

        Args:
            encoder: Of a checkpoint with a language-model head.
            length_normalized: Divide the log-likelihood of a label by its number of tokens.
            separator: What stands between prompt and label.
            max_batch_tokens: Most tokens of one forward pass; None for the hardware's default.

        Raises:
            BellmError: It is no encoder, or its model has no language-model head.
        """
        check_encoder(encoder, Encoder)
        self.encoder, self.length_normalized, self.separator = encoder, length_normalized, separator
        self._max_batch_tokens = max_batch_tokens
        with encoder.causal() as model:
            self._model = model
        check_lm_head(self._model)

    def score(
        self,
        prompts: Sequence[str | Rendered],
        labels: Sequence[str],
        *,
        done: Callable[[int], object] = lambda _: None,
    ) -> Scores:
        """Log-likelihood of every label after every prompt, in nats, (N, K).

        What prompts begin with in common is computed once. Prompts that are too long for the encoder's `max_tokens`
        lose the ends of their long parts, see `bellm.prompts.render`.

        Args:
            prompts: Texts, or rendered templates.
            labels: At least two different words, the same for all prompts.
            done: Called with the number of further labels that are scored.

        Raises:
            BellmError: A label is there twice or has no tokens, or a prompt leaves no room.

        Warns:
            TruncationWarning: Prompts were shortened.
            BellmWarning: A label begins as another does; see `check_labels`.
        """
        self.check_labels(labels)
        found = self.score_with_stats(prompts, labels, done=done)
        warn_truncated(found.num_truncated, len(prompts), self.encoder.config.max_tokens)
        return found.scores_NK

    def check_labels(self, labels: Sequence[str]) -> None:
        """Make sure that labels can be told apart.

        Raises:
            BellmError: There are fewer than two, one is no visible text, or two have the same tokens.

        Warns:
            BellmWarning: The tokens of a label begin those of another: it is never less likely than that one, unless
                scores are divided by numbers of tokens.
        """
        check_list("labels", labels)
        if problem := next(filter(None, map(text_problem, labels)), ""):
            raise BellmError(f"labels: {problem}")
        if len(set(labels)) < len(labels) or len(labels) < 2 or any(map(is_blank, labels)):
            raise BellmError(f"labels={list(labels)} are not two or more different words.")
        tokens = self.encoder.tokenize_answers([_NEUTRAL], [self.separator + label for label in labels])
        answers = [ids[start:end] for ids, (start, end) in zip(tokens.ids, tokens.spans, strict=True)]
        for (short, first), (long, second) in permutations(zip(labels, answers, strict=True), 2):
            if first == second:
                raise BellmError(f"The tokenizer gives {short!r} and {long!r} the same tokens. Give other words.")
            if first == second[: len(first)] and not self.length_normalized:
                warn(
                    f"The label {long!r} begins with the tokens of {short!r}, and is never likelier. Give other words, "
                    "or divide by the number of tokens (length_normalized).",
                    BellmWarning,
                )

    def score_with_stats(
        self,
        prompts: Sequence[str | Rendered],
        labels: Sequence[str],
        *,
        done: Callable[[int], object] = lambda _: None,
    ) -> LabelScores:
        """Score labels that were checked, and count tokens and prompts that were shortened, without a warning."""
        if isinstance(prompts, str):
            raise BellmError("prompts is one string: give a list, if only of one.")
        for number, prompt in enumerate(prompts):
            if problem := text_problem(prompt.text if isinstance(prompt, Rendered) else prompt):
                raise BellmError(f"prompts[{number}]: {problem}")
        count = len(labels)
        tokens = self.encoder.tokenize_answers(prompts, [self.separator + label for label in labels])
        scores_R = answer_log_likelihoods(
            self._model,
            tokens,
            packed=check_packing(self._model).packed_model if len(tokens) else None,
            max_batch_tokens=self._max_batch_tokens,
            pad_id=fallback_token_id(self.encoder.tokenizer),
            done=done,
        )
        if self.length_normalized:
            scores_R = scores_R / np.array([end - start for start, end in tokens.spans])
        num_tokens = sum(map(len, tokens.ids[::count]))
        return LabelScores(scores_R.reshape(len(prompts), count), num_tokens, tokens.num_truncated // count)


def label_probabilities(scores_NK: Scores) -> Scores:
    """Probabilities of the labels among themselves, a softmax of their scores, (N, K)."""
    odds_NK = np.exp(scores_NK - scores_NK.max(1, keepdims=True))
    return np.asarray(odds_NK / odds_NK.sum(1, keepdims=True))


def calibrate_contextual(scores_NK: Scores, content_free_MK: Scores) -> Scores:
    """Take from scores what a prompt without content gives (contextual calibration, arXiv 2102.09690).

    Its label probabilities, averaged over M such prompts ("N/A", nothing), divide those of all prompts, so that they
    themselves come out even.
    """
    return np.asarray(scores_NK - np.log(label_probabilities(content_free_MK).mean(0)))


def calibrate_batch(scores_NK: Scores) -> Scores:
    """Take from scores the mean over the prompts themselves (batch calibration, arXiv 2309.17249).

    Label probabilities are divided by their mean over all prompts. No label is looked at, but every prompt is: the
    result depends on which prompts are scored together.
    """
    return np.asarray(scores_NK - np.log(label_probabilities(scores_NK).mean(0)))
