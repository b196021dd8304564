"""The texts that benchmarks/encode.py embeds, and how.

Sentences, prompts, one text at a time, a long shared prefix, documents. Sentences are those of
STS-Benchmark's test pairs, documents those of SciFact with 300 tokens and more; both lie in the research data
(BELLM_DATA or ../shared/data). What is drawn, and its order, are the same each time.
"""

import json
from dataclasses import dataclass

import numpy as np
from measure_sts import data_folder, read_pairs
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from bellm.prompts import resolve_prompt
from bellm.types import PoolingName

MAX_TOKENS = 512

DEMONSTRATIONS = """\
Instruct: Give the one word that says what a sentence is about, so that sentences that mean the same get the same word.
Sentence: "The band came back on stage and played one more song." Word: "concert"
Sentence: "After three days of rain the river ran through the streets." Word: "flood"
Sentence: "She mixed the flour and eggs and put the tin in the oven." Word: "baking"
Sentence: "{text}" Word: \""""


@dataclass(frozen=True)
class Workload:
    """Texts and how they are to be embedded."""

    name: str
    prompt: str
    pooling: PoolingName
    num: int
    """Sentence pairs, or documents."""
    num_quick: int
    bidirectional: str = "none"
    documents: bool = False
    one_by_one: bool = False
    """Whether each text is a call of its own, as one embeds queries."""


WORKLOADS = (
    Workload("raw", "raw", "mean", 320, 12),
    Workload("prompteol", "prompteol", "last", 192, 8),
    Workload("one-text", "prompteol", "last", 16, 6, one_by_one=True),
    Workload("bellm", "bellm", "last", 192, 8),
    Workload("bellm-last8", "bellm", "last", 192, 8, bidirectional="last:8"),
    Workload("long-prefix", DEMONSTRATIONS, "last", 48, 4),
    Workload("documents", "raw", "mean", 32, 2, documents=True),
)


@dataclass(frozen=True)
class Texts:
    """The texts of a workload in the order in which they arrive."""

    bare: list[str]
    filled: list[str]
    """With their prompt."""
    ids: list[list[int]]
    left: NDArray[np.int64]
    """Where the first sentence of each pair lies."""
    right: NDArray[np.int64]
    gold: NDArray[np.float64]

    @property
    def num_tokens(self) -> int:
        """Tokens with the prompt, as a model would read the texts one by one."""
        return sum(map(len, self.ids))


def draw(workload: Workload, tokenizer: PreTrainedTokenizerBase, *, quick: bool = False) -> Texts:
    """Draw texts and bring them into a random order, both with fixed seeds."""
    num = workload.num_quick if quick else workload.num
    gold = np.empty(0)
    if workload.documents:
        bare = _long_documents(num, tokenizer)
    else:
        pairs = read_pairs(data_folder() / "stsbenchmark" / "sts-test.csv", num)
        bare, gold = [*pairs.left, *pairs.right], pairs.gold
    order = np.random.default_rng(1).permutation(len(bare))
    place = np.argsort(order)
    bare = [bare[number] for number in order]
    template = resolve_prompt(workload.prompt).template
    filled = [template.replace("{text}", text) for text in bare]
    ids = _token_ids(filled, tokenizer)
    return Texts(bare, filled, ids, place[: len(gold)], place[len(gold) : 2 * len(gold)], gold)


def _long_documents(num: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """SciFact's documents, title first."""
    with (data_folder() / "scifact" / "derived" / "corpus.jsonl").open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    texts = [f"{one['title']} {one['text']}" for one in records]
    drawn = [texts[number] for number in np.random.default_rng(0).permutation(len(texts))[: 6 * num]]
    return [text for text, ids in zip(drawn, _token_ids(drawn, tokenizer), strict=True) if len(ids) >= 300][:num]


def _token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Cut to the limit."""
    return [ids[:MAX_TOKENS] for ids in tokenizer(texts).input_ids]
