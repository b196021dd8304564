"""What must not change on a real model in float32, printed as largest differences.

The doctor's checks; the parallel variant against a reference written out from the paper's equation; gradients with
gradient checkpointing and two forwards before one backward, against gradients without.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from bellm import Encoder, saved_encoder
from bellm.backbone.architecture import get_decoder, get_layers
from bellm.backbone.attention import open_layers
from bellm.backbone.states import token_states
from bellm.doctor import diagnose
from bellm.engine.padded import pad_rows
from bellm.engine.tokenization import fallback_token_id


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="a Llama-like model: the reference is written for these")
    parser.add_argument("--bidirectional", default="last:8", help="which layers look both ways")
    parser.add_argument("--quick", action="store_true", help="the same: this takes a minute")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    encoder = Encoder.from_pretrained(options.model, bidirectional=options.bidirectional, dtype="float32")
    diagnosis = diagnose(encoder)
    rows = {check.name: check.value for check in diagnosis.checks if check.value is not None}
    ids_BL, mask_BL = pad_rows(
        encoder.tokenize(saved_encoder.FINGERPRINT_TEXTS).ids, fallback_token_id(encoder.tokenizer), encoder.device
    )
    rows["parallel variant equals the equation"] = parallel_difference(encoder, ids_BL, mask_BL)
    rows["gradients with checkpointing and two forwards"] = gradient_difference(encoder.model, ids_BL, mask_BL)
    table = Table("what", "largest relative difference", title=repr(encoder))
    for name, value in rows.items():
        table.add_row(name, f"{value:.1e}")
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    if not diagnosis.healthy:
        raise SystemExit("the doctor found a failure")


@torch.no_grad()
def parallel_difference(encoder: Encoder, ids_BL: Tensor, mask_BL: Tensor) -> float:
    """Distance of the parallel variant to h = norm(closed layers(x) + open layers(x)), layer by layer."""
    chosen = encoder.config.bidirectional
    with encoder.causal() as plain:
        ours_BLD = token_states(open_layers(plain, chosen, variant="parallel"), ids_BL, mask_BL)
        decoder: Any = get_decoder(plain)
        embedded_BLD = decoder.embed_tokens(ids_BL)
        positions_1L = torch.arange(ids_BL.shape[1])[None]
        rotary = decoder.rotary_emb(embedded_BLD, positions_1L)
        real_B11L = mask_BL.bool()[:, None, None, :].expand(-1, 1, ids_BL.shape[1], -1)
        causal_BLD, both_BLD = embedded_BLD, embedded_BLD
        for layer in get_layers(plain):
            if layer.index in chosen:
                both_BLD = layer.module(both_BLD, attention_mask=real_B11L, position_embeddings=rotary)
            else:
                mask = real_B11L & torch.ones(ids_BL.shape[1], ids_BL.shape[1], dtype=torch.bool).tril()
                causal_BLD = layer.module(causal_BLD, attention_mask=mask, position_embeddings=rotary)
        wanted_BLD = decoder.norm(causal_BLD + both_BLD)
    real_BL = mask_BL.bool()
    apart = (ours_BLD - wanted_BLD).norm(dim=-1) / wanted_BLD.norm(dim=-1)
    return float(apart[real_BL].max())


def gradient_difference(model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor) -> float:
    """Distance of gradients with checkpointing to those without, for two batches of different padding at once."""
    plain = _gradients(model, ids_BL, mask_BL)
    model.activation_checkpointing_enable()
    model.train()
    checkpointed = _gradients(model, ids_BL, mask_BL)
    model.activation_checkpointing_disable()
    model.eval()
    return float((plain - checkpointed).norm() / plain.norm())


def _gradients(model: PreTrainedModel, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
    model.zero_grad()
    lengths_B = mask_BL.sum(1)
    queries = token_states(model, ids_BL[:2, : lengths_B[:2].max()], mask_BL[:2, : lengths_B[:2].max()])
    documents = token_states(model, ids_BL[2:], mask_BL[2:])
    similarity = torch.nn.functional.cosine_similarity(queries.mean(1), documents.mean(1))
    similarity.sum().backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return torch.cat(gradients)


if __name__ == "__main__":
    main()
