"""The doctor is green for a sound encoder, and red for each fault that is planted."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bellm import Encoder
from bellm.backbone.architecture import get_layers
from bellm.doctor import Check, Diagnosis, diagnose
from bellm.errors import NoOpWarning
from bellm.saved_encoder import read_saved

Fault = Callable[[dict[str, Any]], dict[str, Any]]


def attend_padding(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "attention_mask": None}


def fall_back_to_causal_without_padding(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**kwargs, "is_causal": True} if kwargs["attention_mask"] is None else kwargs


def ignore_the_mask(kwargs: dict[str, Any]) -> dict[str, Any]:
    length = kwargs["hidden_states"].shape[1]
    return {**kwargs, "attention_mask": torch.ones(length, length, dtype=torch.bool).tril()[None, None]}


def see_the_future(kwargs: dict[str, Any]) -> dict[str, Any]:
    length = kwargs["hidden_states"].shape[1]
    return {**kwargs, "attention_mask": torch.ones(length, length, dtype=torch.bool)[None, None]}


def plant(encoder: Encoder, fault: Fault, *, layers: tuple[int, ...]) -> Encoder:
    """A copy of the encoder whose attention gets other arguments than the open layers mean it to get."""
    sick = copy.deepcopy(encoder)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, fault(kwargs)

    for number in layers:
        get_layers(sick.model)[number].attention[0].register_forward_pre_hook(hook, with_kwargs=True)
    return sick


def failed(diagnosis: Diagnosis) -> set[str]:
    return {check.name for check in diagnosis.checks if check.status == "fail"}


def find(diagnosis: Diagnosis, name: str) -> Check:
    return next(check for check in diagnosis.checks if check.name == name)


def test_a_sound_encoder_is_healthy_and_every_number_within_its_limit(tiny_encoder: Encoder) -> None:
    diagnosis = diagnose(tiny_encoder)
    assert diagnosis.healthy
    assert failed(diagnosis) == set()
    for check in diagnosis.checks:
        assert check.value is None or check.value <= (check.limit or 0)
    assert find(diagnosis, "no open layer equals the plain model").value == 0
    assert find(diagnosis, "all open equals transformers' switch").value == 0
    assert [row.layer for row in diagnosis.layers if row.leakage.future > 1e-5] == [2, 3]


def test_a_causal_encoder_is_healthy_too(tiny_encoder: Encoder) -> None:
    assert diagnose(tiny_encoder.replace(bidirectional="none")).healthy


@pytest.mark.parametrize("variant", ["sequential", "parallel"])
def test_every_map_is_healthy(tiny_encoder: Encoder, variant: str) -> None:
    for directions in ("all", "0", "first:2", "every:2"):
        encoder = tiny_encoder.replace(bidirectional=directions, variant=variant, pooling="mean")  # type: ignore[arg-type]
        assert failed(diagnose(encoder)) == set(), directions


def test_attended_padding_is_red(tiny_encoder: Encoder) -> None:
    diagnosis = diagnose(plant(tiny_encoder, attend_padding, layers=(2, 3)))
    assert {"padding is never attended", "alone equals in a batch"} <= failed(diagnosis)
    assert find(diagnosis, "padding is never attended").advice


def test_falling_back_to_causal_without_padding_is_red(tiny_encoder: Encoder) -> None:
    diagnosis = diagnose(plant(tiny_encoder, fall_back_to_causal_without_padding, layers=(2, 3)))
    assert {"open layers, and only they, see the future", "alone equals in a batch"} <= failed(diagnosis)
    assert "open but causal: 2-3" in find(diagnosis, "open layers, and only they, see the future").finding


def test_layers_that_ignore_their_mask_are_red(tiny_encoder: Encoder) -> None:
    diagnosis = diagnose(plant(tiny_encoder, ignore_the_mask, layers=(2, 3)))
    assert "open but causal: 2-3" in find(diagnosis, "open layers, and only they, see the future").finding
    assert not diagnosis.healthy


def test_a_closed_layer_that_sees_the_future_is_red(tiny_encoder: Encoder) -> None:
    diagnosis = diagnose(plant(tiny_encoder, see_the_future, layers=(1,)))
    assert "closed but leaking: 1" in find(diagnosis, "open layers, and only they, see the future").finding
    assert "no open layer equals the plain model" in failed(diagnosis)


def test_settings_that_the_model_does_not_have_are_red(tiny_encoder: Encoder) -> None:
    with tiny_encoder.causal() as plain:
        sick = Encoder(plain, tiny_encoder.tokenizer, tiny_encoder.config, tiny_encoder.name)
    assert "the model is what the settings say" in failed(diagnose(sick))


def test_the_no_op_is_a_warning(tiny_encoder: Encoder) -> None:
    with pytest.warns(NoOpWarning):
        encoder = tiny_encoder.replace(bidirectional="last:1")
    diagnosis = diagnose(encoder)
    assert diagnosis.healthy
    assert find(diagnosis, "the open layers reach the vector").status == "warn"


def test_other_weights_fail_the_fingerprint(tiny_encoder: Encoder, tiny_folder: Path) -> None:
    saved = read_saved(tiny_folder)
    assert find(diagnose(tiny_encoder, saved=saved), "fingerprint").value == 0
    sick = copy.deepcopy(tiny_encoder)
    with torch.no_grad():
        sick.model.get_input_embeddings().weight.mul_(1.1)
    assert "fingerprint" in failed(diagnose(sick, saved=saved))
