"""A tiny encoder with a real tokenizer, made on the spot: no test needs the network or a large model."""

import os
import shutil
import signal
import tempfile

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads that wait for each other by spinning take a core from those they wait for: on a busy machine, thirtyfold time.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# numpy's and scipy's BLAS has no such setting, and nothing here is large enough to gain by its threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder
from tests.report.browser import chromium

# How long an example takes is the machine's affair.
settings.register_profile("bellm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bellm")


def pytest_configure(config: pytest.Config) -> None:
    """Let fixtures end their processes also where the run is asked to end; give all workers one cache of their own."""
    signal.signal(signal.SIGTERM, lambda *_: pytest.exit("asked to end", 143))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # As a shell has it in the background, for all children too.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        os.environ["BELLM_CACHE"] = cache = tempfile.mkdtemp(prefix="bellm-cache-")
        config.add_cleanup(lambda: shutil.rmtree(cache, ignore_errors=True))


CORPUS = (
    "A heron stands in the shallow water and waits for a fish.",
    "The invoice was paid twice by mistake, so the bank sent one half back.",
    "Why does bread rise when it is left in a warm kitchen?",
    "Snow fell all night; in the morning the street was white and quiet.",
    'This sentence : "A cat sleeps on the mat" means in one word:"',
    "Two trains leave the station at noon, one of them an hour late.",
)
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on the corpus; like Llama's, it puts a BOS before the text and nothing behind it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, bos_token=bos, eos_token=eos, model_max_length=128
    )


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of research data, read only."""
    folder = Path(os.environ.get("BELLM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no research data in {folder}: set BELLM_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A causal Llama of four layers, its weights large enough that every layer shows in the vectors."""
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.15,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_encoder(tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder.from_pretrained(tiny_model, tokenizer=tiny_tokenizer, bidirectional="last:2")


@pytest.fixture(scope="session")
def tiny_folder(tiny_encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "encoder"
    tiny_encoder.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser without a window."""
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver
