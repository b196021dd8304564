"""Parses that the causal model writes itself (SENSE's rival SP-Output)."""

from collections.abc import Sequence

import torch

from bellm.backbone.states import check_lm_head, input_device, without_autocast
from bellm.encoder import Encoder
from bellm.engine.padded import pad_rows
from bellm.engine.tokenization import fallback_token_id
from bellm.errors import BellmError
from bellm.prompts import render

_PROMPT = "Give the semantic parsing result of the sentence.\nSentence: {text}\nSemantic parsing result:"
_NEW_TOKENS = 48
_FEWEST_TOKENS, _MOST_TOKENS = 32, 256
"""Of a prompt: longer texts lose their ends."""

_BATCH = 16


def write_parses(encoder: Encoder, texts: Sequence[str]) -> list[str]:
    """What an encoder's causal model writes when it is asked for a parse of each text: one line, greedily decoded."""
    limit = min(_MOST_TOKENS, encoder.config.max_tokens - _NEW_TOKENS)
    if limit < _FEWEST_TOKENS:
        raise BellmError(
            f"max_tokens={encoder.config.max_tokens} leaves no room for parses: sp-output needs at least "
            f"{_FEWEST_TOKENS + _NEW_TOKENS}."
        )
    short, found = encoder.replace(max_tokens=limit), list[str]()
    with short.causal() as model:
        check_lm_head(model)
        for start in range(0, len(texts), _BATCH):
            prompts = [render(_PROMPT, {"text": text}) for text in texts[start : start + _BATCH]]
            tokens = short.tokenize_answers(prompts, ["\n"])
            rows = [ids[:first] for ids, (first, _) in zip(tokens.ids, tokens.spans, strict=True)]
            pad_id = fallback_token_id(encoder.tokenizer)
            ids_BL, mask_BL = pad_rows(rows, pad_id, input_device(model), left=True)
            with torch.inference_mode(), without_autocast(model):
                written_BL = model.generate(
                    input_ids=ids_BL,
                    attention_mask=mask_BL,
                    do_sample=False,
                    max_new_tokens=_NEW_TOKENS,
                    pad_token_id=pad_id,
                )
            new = encoder.tokenizer.batch_decode(written_BL[:, ids_BL.shape[1] :], skip_special_tokens=True)
            found += [" ".join(each.strip().partition("\n")[0].split()) for each in new]
    return found
