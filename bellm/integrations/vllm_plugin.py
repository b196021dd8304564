"""vLLM's plugin of bellm: models some of whose layers are open, exported by `bellm export --to vllm`.

vLLM calls `register` at its start, by the entry point `vllm.general_plugins` of bellm's distribution.
"""

ARCHITECTURE = "BellmLlamaModel"
"""What config.json of such a folder names, so that nothing else loads it."""

MODEL_TYPES = ("llama", "mistral")
"""Of the models that it was made from; vLLM has one decoder for both."""


def register() -> None:
    """Make transformers and vLLM know the folders."""
    from transformers import CONFIG_MAPPING, AutoConfig
    from vllm import ModelRegistry

    for name in MODEL_TYPES:
        base = CONFIG_MAPPING[name]
        kind = type(f"Open{base.__name__}", (base,), {"model_type": f"bellm_{name}"})
        AutoConfig.register(f"bellm_{name}", kind, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE, "bellm.integrations.vllm_llama:OpenLlama")
