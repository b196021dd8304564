"""Decoders of which it is known what opening each layer does: one made by hand, one trained."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bellm import Encoder
from bellm.backbone.architecture import get_decoder
from bellm.train.dataset import Dataset
from bellm.train.examples import Example
from bellm.train.loop import train
from bellm.train.recipe import LoRA, Recipe


def mixing_in(layer: int, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Encoder:
    """An encoder of the first token, the BOS, in which one layer alone mixes tokens, all alike.

    While the layer is causal, every text has the vector of its BOS. Open, it has the mean of what the text says.
    """
    planted = copy.deepcopy(model)
    with torch.no_grad():
        for number, decoder_layer in enumerate(get_decoder(planted).layers):
            attention = decoder_layer.self_attn
            attention.q_proj.weight.zero_()
            if number != layer:
                attention.o_proj.weight.zero_()
            else:
                attention.o_proj.weight.mul_(20)
    return Encoder.from_pretrained(planted, tokenizer=tokenizer, prompt="raw", pooling="first")


TOPICS = ("fish", "invoice", "station", "sentence", "cat", "mat")
ASIDES = ("warm", "late", "left", "twice", "waits", "stands", "fell", "sent", "all", "one")
_STEPS = 200


def trained_to_see(
    layer: int, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, *, seed: int = 0
) -> Encoder:
    """A causal encoder of the first token, the BOS, that was trained with one layer open.

    What texts have in common is one word, which comes after the first token and among words that say nothing: while all
    layers are closed every text has the same vector, and only the open layer, whose weights alone were trained, has
    learned to look for that word. Other layers, when they are opened, look anywhere.
    """
    random_model = copy.deepcopy(model)
    with torch.no_grad():
        for number, decoder_layer in enumerate(get_decoder(random_model).layers):
            decoder_layer.mlp.down_proj.weight.mul_(0.3)  # So that tokens are still themselves further up.
            decoder_layer.self_attn.o_proj.weight.mul_(0.3 if number <= layer else 2)
    Encoder.from_pretrained(random_model, tokenizer=tokenizer).save_pretrained(folder / "random")
    attention = [f"self_attn.{name}_proj" for name in "qkvo"]
    parts = [*attention, *(f"mlp.{name}_proj" for name in ("gate", "up", "down"))]
    recipe = Recipe(
        model=str(folder / "random"),
        encoder_options={"bidirectional": str(layer), "prompt": "raw", "pooling": "first"},
        tuning=LoRA(rank=16, targets=tuple(f"layers.{layer}.{part}" for part in parts)),
        batch_size=len(TOPICS),
        max_steps=_STEPS,
        epochs=_STEPS,
        learning_rate=6e-3,
        seed=seed,
    )
    encoder = train(recipe, [(on_topics(600, seed), 1.0)], folder / "run", checkpoint_every=_STEPS)
    return encoder.replace(bidirectional="none")


def on_topics(count: int, seed: int) -> Dataset:
    """Texts with the word of their positive, and with the other words of their negative."""
    return Dataset("topics", (Example(one, (like,), (unlike,)) for one, like, unlike in _texts(count, seed)))


def write_topics(folder: Path, count: int, seed: int) -> None:
    """STS-Benchmark's development file, in which such texts are rated by that word."""
    (folder / "stsbenchmark").mkdir(parents=True)
    lines = []
    for number, (one, like, unlike) in enumerate(_texts(count, seed)):
        rating, other = ("5.000", like) if number % 2 else ("1.000", unlike)
        lines.append(f"main\tours\t2026\t{number:04}\t{rating}\t{one}\t{other}\n")
    (folder / "stsbenchmark" / "sts-dev.csv").write_text("".join(lines), encoding="utf-8")


def _texts(count: int, seed: int) -> Iterator[tuple[str, str, str]]:
    draw = random.Random(seed)
    for _ in range(count):
        topic, other = draw.sample(TOPICS, 2)
        asides = draw.sample(ASIDES, 3)
        yield _text(draw, topic, asides), _text(draw, topic, draw.sample(ASIDES, 3)), _text(draw, other, asides)


def _text(draw: random.Random, topic: str, asides: list[str]) -> str:
    place = draw.randint(1, len(asides))
    return " ".join([*asides[:place], topic, *asides[place:]])
