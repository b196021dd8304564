"""Write an encoder as a folder of transformers, and with modules beside it one of sentence-transformers.

Where no layer is open, or transformers' own switch opens all of them, the folder has stock classes. Elsewhere it brings
`open_decoder.py`, and a model type of its own, so that nothing loads it without these hooks.
"""

import copy
import inspect
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import MODEL_MAPPING, PreTrainedModel, PreTrainedTokenizerBase

from bellm.backbone.architecture import get_decoder, get_layers, get_text_config
from bellm.backbone.hooks import causal_copy
from bellm.backbone.states import input_device, token_states
from bellm.config import EncoderConfig
from bellm.encoder import Encoder
from bellm.engine.padded import pad_rows
from bellm.engine.tokenization import special_tokens, tokens_around
from bellm.errors import BellmError
from bellm.export import open_decoder
from bellm.io.atomic import write_bytes, write_json
from bellm.prompts import SLOT
from bellm.tensors.similarity import relative_distance, tolerances
from bellm.types import PoolingName

CODE_FILE = "open_decoder.py"

_POOLINGS: dict[PoolingName, str] = {
    "last": "lasttoken",
    "mean": "mean",
    "weighted-mean": "weightedmean",
    "first": "cls",
    "max": "max",
}
"""Names of sentence-transformers."""


def write_transformers(encoder: Encoder, folder: Path) -> dict[str, Any]:
    """Write decoder and tokenizer; returns whether they need their own code."""
    has_code = _write_decoder(encoder, folder)
    tokenizer = plain_tokenizer(encoder)
    if not any(_has_special(tokenizer, each) for each in _templates(encoder.config)):
        _take_special_tokens_for_text(tokenizer)
    tokenizer.save_pretrained(folder)
    return {"remote_code": has_code}


def write_sentence_transformers(encoder: Encoder, folder: Path) -> dict[str, Any]:
    """Write decoder, tokenizer and modules; returns whether they need their own code."""
    has_code = _write_decoder(encoder, folder)
    config = encoder.config
    tokenizer = plain_tokenizer(encoder)
    write_json(folder / "modules.json", write_pooling(encoder, folder))
    has_special = any(_has_special(tokenizer, each) for each in _templates(config))
    is_prefix = not has_special and all(each.endswith(SLOT) for each in _templates(config))
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    modality: dict[str, Any] = {"text": forward}
    processing: dict[str, Any] = {}
    special_texts = True
    prompts: dict[str, str] = {}
    if is_prefix:
        prompts = dict(
            zip(("text", "query", "document"), (each.removesuffix(SLOT) for each in _templates(config)), strict=True)
        )
        _take_special_tokens_for_text(tokenizer)
    else:
        tokenizer.chat_template = _jinja(tokenizer, config)
        modality["message"] = {**forward, "format": "flat"}
        if has_special or tokenizer("a").input_ids != tokenizer("a", add_special_tokens=False).input_ids:
            # Special tokens in texts are text, too, but are cut from their neighbors before they are tokenized.
            processing, special_texts = {"chat_template": {"sanitize_control_tokens": not has_special}}, False
        else:
            _take_special_tokens_for_text(tokenizer)
    tokenizer.save_pretrained(folder)
    transformer = {
        "transformer_task": "feature-extraction",
        "modality_config": modality,
        "module_output_name": "token_embeddings",
        "processing_kwargs": processing,
    }
    write_json(folder / "sentence_bert_config.json", transformer)
    default = "text" if prompts.get("text") else None
    settings = {"model_type": "SentenceTransformer", "prompts": prompts, "default_prompt_name": default}
    write_json(folder / "config_sentence_transformers.json", {**settings, "similarity_fn_name": "cosine"})
    return {"remote_code": has_code, "special_texts": special_texts}


def write_pooling(encoder: Encoder, folder: Path) -> list[dict[str, Any]]:
    """Write the modules behind the decoder; returns the list of all modules."""
    config, width = encoder.config, encoder.uncentered().embedding_dim
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    _write_module(folder / "1_Pooling", {"embedding_dimension": width, "pooling_mode": _POOLINGS[config.pooling]})
    if config.centering != "none" or config.truncate_dim:
        modules.append(("Dense", f"{len(modules)}_Dense"))
        _write_linear(encoder, folder / modules[-1][1], width)
    if config.normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
        (folder / modules[-1][1]).mkdir()
    return [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(modules)
    ]


def _templates(config: EncoderConfig) -> tuple[str, ...]:
    return tuple(config.template_for(each) for each in ("text", "query", "document"))


def _has_special(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    return any(token in template for token in special_tokens(tokenizer))


def plain_tokenizer(encoder: Encoder) -> PreTrainedTokenizerBase:
    """Copy of the tokenizer that pads and cuts as bellm does, and applies no template of a chat."""
    tokenizer = copy.deepcopy(encoder.tokenizer)
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    tokenizer.model_max_length = encoder.config.max_tokens
    tokenizer.chat_template = None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.bos_token or tokenizer.eos_token
    return tokenizer


def _take_special_tokens_for_text(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.split_special_tokens = True
    tokenizer.init_kwargs["split_special_tokens"] = True


def _jinja(tokenizer: PreTrainedTokenizerBase, config: EncoderConfig) -> str:
    """A chat template that renders a message as bellm's prompt does, with the tokenizer's own special tokens."""
    before, after = map(tokenizer.convert_ids_to_tokens, tokens_around(tokenizer))

    def written(template: str) -> str:
        left, right = template.split(SLOT)
        text = "{{ messages | map(attribute='content') | join('') }}"
        return f"{_quoted(''.join(before) + left)}{text}{_quoted(right + ''.join(after))}"

    text, query, document = map(written, _templates(config))
    if text == query == document:
        return text
    return f"{{% if task == 'query' %}}{query}{{% elif task == 'document' %}}{document}{{% else %}}{text}{{% endif %}}"


def _quoted(text: str) -> str:
    """A text as an expression of Jinja, which would take braces and line breaks of its own."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def _write_module(folder: Path, config: dict[str, Any]) -> None:
    folder.mkdir()
    write_json(folder / "config.json", config)


def _write_linear(encoder: Encoder, folder: Path, width: int) -> None:
    """Centering and truncation as one linear module."""
    config, statistics = encoder.config, encoder.statistics
    weight_WD, mean_D = torch.eye(width), torch.zeros(width)
    if statistics and config.centering != "none":
        mean_D = torch.from_numpy(statistics.mean_D)
        if config.centering == "whitening":
            assert statistics.whitening_DD is not None
            weight_WD = torch.from_numpy(statistics.whitening_DD).T
    weight_WD = weight_WD[: config.truncate_dim].contiguous()
    settings = {"in_features": width, "out_features": len(weight_WD), "bias": True}
    _write_module(folder, {**settings, "activation_function": "torch.nn.modules.linear.Identity"})
    bias_W = -(weight_WD.double() @ mean_D.double()).float()
    save_file({"linear.weight": weight_WD, "linear.bias": bias_W}, folder / "model.safetensors")


def _write_decoder(encoder: Encoder, folder: Path) -> bool:
    """Write the decoder without its head; returns whether it needs code of its own to look both ways."""
    decoder = headless_model(causal_copy(encoder.model))
    decoder.save_pretrained(folder)
    opened = encoder.config.bidirectional
    if not opened:
        return False
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if len(opened) == encoder.num_layers and _switch_opens_all(encoder.model):
        write_json(path, config | {"is_causal": False})
        return False
    names = {module: name for name, module in headless_model(encoder.model).named_modules()}
    attention = [
        names[module] for layer in get_layers(encoder.model) if layer.index in opened for module in layer.attention
    ]
    model_type = f"bellm_{config['model_type']}"
    bases = [f"from {kind.__module__} import {kind.__name__}" for kind in (type(decoder.config), type(decoder))]
    write_bytes(folder / CODE_FILE, _code(bases[0], bases[1], model_type).encode())
    stem = Path(CODE_FILE).stem
    auto_map = {"AutoConfig": f"{stem}.OpenDecoderConfig", "AutoModel": f"{stem}.OpenDecoder"}
    own = {"model_type": model_type, "auto_map": auto_map, "architectures": ["OpenDecoder"]}
    opening = {"open_attention": attention, "keep_window": encoder.config.window == "keep"}
    write_json(path, config | own | opening)
    return True


def _code(config_import: str, model_import: str, model_type: str) -> str:
    """The file that opens layers, on the classes of a model."""
    code = inspect.getsource(open_decoder)
    for ours, theirs in (
        ("from transformers import LlamaConfig as", f"{config_import} as"),
        ("from transformers import LlamaModel as", f"{model_import} as"),
        ('"bellm_llama"', json.dumps(model_type)),
    ):
        assert ours in code
        code = code.replace(ours, theirs)
    return code


def check_remote_code(folder: Path) -> None:
    """Raise a BellmError unless the Python in an exported folder is what bellm writes there, before it is run."""
    found = {path.name: path.read_bytes() for path in folder.rglob("*.py")}
    code = found.get(CODE_FILE, b"").decode(errors="replace")
    imports = re.findall(r"^(from transformers\.models\.[\w.]+ import \w+) as Base", code, re.MULTILINE)
    [model_type] = re.findall(r'model_type = "(bellm_\w+)"', code)[:1] or [""]
    if len(imports) != 2 or found != {CODE_FILE: _code(imports[0], imports[1], model_type).encode()}:
        raise BellmError(
            f"{folder} holds Python that this version of bellm has not written, which is not run. Export again."
        )


def headless_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model without its head, of the class that AutoModel makes of its configuration."""
    for base in (model.base_model, get_decoder(model)):
        if isinstance(base, PreTrainedModel) and MODEL_MAPPING.get(type(base.config), None) is type(base):
            return base
    raise BellmError(f"{type(model).__name__} has no model without a head that AutoModel loads: it cannot be exported.")


@torch.inference_mode()
def _switch_opens_all(model: PreTrainedModel) -> bool:
    """Whether transformers' own `is_causal: false` gives the states of all layers open; windows are not alike there."""
    if any(layer.kind != "full" for layer in get_layers(model)):
        return False
    switched = causal_copy(model)
    setattr(get_text_config(switched), "is_causal", False)  # noqa: B010 - configurations are untyped
    ids_BL, mask_BL = pad_rows([range(3, 20), range(5, 12)], 0, input_device(model))
    try:
        states_BLD, expected_BLD = (token_states(each, ids_BL, mask_BL)[mask_BL.bool()] for each in (switched, model))
    except (AttributeError, TypeError, RuntimeError):
        return False
    return relative_distance(states_BLD, expected_BLD) <= tolerances(model.dtype).states
