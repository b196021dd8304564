"""vLLM's Llama with open layers: imported by vLLM alone, see `bellm.integrations.vllm_plugin`."""

import copy
from typing import Any

from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM
from vllm.model_executor.models.utils import extract_layer_index


class _Layer(LlamaDecoderLayer):  # type: ignore[misc] # vLLM is not there where types are checked.
    """A layer that is causal or open as `open_layers` of the configuration says.

    vLLM asks the configuration whether a layer is causal: each gets a copy of its own. That of the whole model says
    that it is not, so that vLLM neither cuts prompts into chunks nor reuses their prefixes.
    """

    def __init__(self, vllm_config: Any, prefix: str = "", config: Any = None, **options: Any) -> None:
        config = copy.copy(config or vllm_config.model_config.hf_config)
        config.is_causal = extract_layer_index(prefix) not in config.open_layers
        super().__init__(vllm_config, prefix, config, **options)


class OpenLlama(LlamaForCausalLM):  # type: ignore[misc]
    """A Llama, or a model like it, with open layers."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        """As vLLM makes its models."""
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=_Layer)
