"""What a step is, written out: padded rows, a layer after the other, and the closed forms of the losses.

Shapes: B rows, K candidates of a row, L tokens, D width.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from bellm import Encoder
from bellm.backbone import adapters
from bellm.backbone.architecture import get_decoder
from bellm.backbone.hooks import causal_copy
from bellm.train.examples import Example


def with_lora(encoder: Encoder, seed: int = 0, dropout: float = 0.0) -> Encoder:
    """An encoder whose adapters have learned something already; its weights are shared, and frozen."""
    own = encoder.replace(verify=False)
    own.model.requires_grad_(False)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        own = own.with_model(adapters.add_lora(own.model, rank=4, alpha=8, dropout=dropout, targets="all-linear"))
        for name, parameter in own.model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return own


def exact(encoder: Encoder) -> Encoder:
    """The encoder, its weights now in float64: a step's rounding in float32 is 20 times as large in a loss."""
    encoder.model.double()
    return encoder


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of all that is trained, and an end to them."""
    found = {name: each.grad for name, each in trained(model).items() if each.grad is not None}
    model.zero_grad()
    return found


def distance(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """Largest relative distance of one weight's gradient."""
    assert found.keys() == wanted.keys()
    assert found
    return max(float((found[name] - wanted[name]).norm() / wanted[name].norm().clamp(min=1e-7)) for name in wanted)


def tokens_of(encoder: Encoder, texts: Sequence[str], template: str) -> tuple[Tensor, Tensor]:
    """Ids and mask of texts in a template, padded by the tokenizer."""
    rows = [template.replace("{text}", text) for text in texts]
    encoded = encoder.tokenizer(rows, padding=True, padding_side="right", return_tensors="pt")
    return encoded["input_ids"], encoded["attention_mask"]


def states_of(model: Any, ids_BL: Tensor, mask_BL: Tensor, layers: Collection[int]) -> Tensor:
    """Final states of a Llama, with or without adapters, some of whose layers look both ways."""
    base: Any = get_decoder(causal_copy(model))
    hidden_BLD = base.embed_tokens(ids_BL)
    positions_1L = torch.arange(ids_BL.shape[1])[None]
    angles = base.rotary_emb(hidden_BLD, positions_1L)
    real = mask_BL.bool()[:, None, None, :].expand(-1, 1, ids_BL.shape[1], -1)
    for number, layer in enumerate(base.layers):
        seen = real if number in layers else real.tril()
        bias = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        answer = layer(hidden_BLD, attention_mask=bias, position_ids=positions_1L, position_embeddings=angles)
        hidden_BLD = answer[0] if isinstance(answer, tuple) else answer
    states: Tensor = base.norm(hidden_BLD)
    return states


def pooled(states_BLD: Tensor, mask_BL: Tensor, pooling: str) -> Tensor:
    """One vector a row, a row at a time."""
    rows = [states_LD[: int(mask_L.sum())] for states_LD, mask_L in zip(states_BLD, mask_BL, strict=True)]
    if pooling == "last":
        return torch.stack([row_LD[-1] for row_LD in rows])
    if pooling == "first":
        return torch.stack([row_LD[0] for row_LD in rows])
    if pooling == "max":
        return torch.stack([row_LD.amax(0) for row_LD in rows])
    if pooling == "mean":
        return torch.stack([row_LD.mean(0) for row_LD in rows])
    assert pooling == "weighted-mean"
    weights = [torch.arange(1.0, len(row_LD) + 1) for row_LD in rows]
    return torch.stack([weight @ row_LD / weight.sum() for weight, row_LD in zip(weights, rows, strict=True)])


def vectors_of(encoder: Encoder, texts: Sequence[str], template: str) -> Tensor:
    ids_BL, mask_BL = tokens_of(encoder, texts, template)
    states_BLD = states_of(encoder.model, ids_BL, mask_BL, encoder.config.bidirectional)
    return pooled(states_BLD, mask_BL, encoder.config.pooling)


def cosines(encoder: Encoder, examples: Sequence[Example], templates: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Of every anchor with every positive (B, B), and with every row's negatives (B, B, K)."""
    anchors_BD = functional.normalize(vectors_of(encoder, [one.anchor for one in examples], templates[0]))
    positives_BD = functional.normalize(vectors_of(encoder, [one.positives[0] for one in examples], templates[1]))
    negatives = [text for one in examples for text in one.negatives]
    negatives_ND = functional.normalize(vectors_of(encoder, negatives, templates[1]))
    rows = len(examples)
    return anchors_BD @ positives_BD.T, (anchors_BD @ negatives_ND.T).view(rows, rows, -1)


def info_nce(positive_BB: Tensor, negative_BBK: Tensor) -> Tensor:
    """Every anchor picks its positive among all candidates of the batch."""
    scores = torch.cat([positive_BB, negative_BBK.flatten(1)], 1) / 0.05
    return functional.cross_entropy(scores, torch.arange(len(scores)))


def own_cosines(positive_BB: Tensor, negative_BBK: Tensor) -> Tensor:
    """Of every anchor with its own candidates, its positive first."""
    number = torch.arange(len(positive_BB))
    return torch.cat([positive_BB.diagonal()[:, None], negative_BBK[number, number]], 1)


def written(
    model: Any, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], prompt: str
) -> tuple[Tensor, Tensor]:
    """Log-probability of each row's candidates after its anchor, a row at a time: of all tokens, and of one (B, K)."""
    sums, means = [], []
    for one in examples:
        for text in one.texts[1:]:
            begun = tokenizer(prompt.replace("{text}", one.anchor)).input_ids
            ids = [*tokenizer(prompt.replace("{text}", one.anchor) + text).input_ids, tokenizer.eos_token_id]
            assert ids[: len(begun)] == begun
            logits_LV = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            log_probs = [logits_LV[at - 1].log_softmax(0)[ids[at]] for at in range(len(begun), len(ids))]
            sums.append(torch.stack(log_probs).sum())
            means.append(torch.stack(log_probs).mean())
    rows = len(examples)
    return torch.stack(sums).view(rows, -1), torch.stack(means).view(rows, -1)
