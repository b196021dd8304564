"""Write an encoder as a folder for vLLM: stock classes where no layer or all are open, else bellm's plugin for vLLM."""

import json
from pathlib import Path
from typing import Any

from bellm.backbone.hooks import causal_copy
from bellm.encoder import Encoder
from bellm.errors import BellmError
from bellm.export.transformer_folder import headless_model, plain_tokenizer, write_pooling
from bellm.integrations.vllm_plugin import ARCHITECTURE, MODEL_TYPES
from bellm.io.atomic import write_json


def write_vllm(encoder: Encoder, folder: Path) -> dict[str, Any]:
    """Write decoder, tokenizer and pooling; returns whether vLLM needs the plugin.

    Raises:
        BellmError: Some layers are open, and the plugin does not know the architecture.
    """
    decoder = headless_model(causal_copy(encoder.model))
    opened, kind = encoder.config.bidirectional, decoder.config.model_type
    is_partial = 0 < len(opened) < encoder.num_layers
    if is_partial and kind not in MODEL_TYPES:
        raise BellmError(
            f"vllm cannot hold some open layers of a {kind}, as of {', '.join(MODEL_TYPES)}: take bidirectional='none' "
            "or 'all'."
        )
    decoder.save_pretrained(folder)
    plain_tokenizer(encoder).save_pretrained(folder)
    if opened:
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) | {"is_causal": False}
        if is_partial:
            own = {"model_type": f"bellm_{kind}", "architectures": [ARCHITECTURE], "open_layers": list(opened)}
            config |= own
        write_json(path, config)
    write_json(folder / "modules.json", write_pooling(encoder, folder))
    return {"plugin": is_partial, "special_texts": False}
