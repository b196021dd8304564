"""LLM2Vec: BehnamGhader et al. 2024, "LLM2Vec: Large Language Models Are Secretly Powerful Text Encoders", 2404.05961.

All layers are opened, the model adapts to it by masked next-token prediction (a fifth of the tokens masked), and
then learns from triplets; vectors are means over the text's tokens. LLM2Vec merges the adapters of the first stage and
trains new ones in the second; here the same adapters go on. It adapts on Wikipedia for 1000 steps of 32 texts of 512
tokens; here on the texts of the training data, for as many steps.

Data: anchor, positive and hard negative.
"""

from bellm.train import MNTP, InfoNCE, LoRA, Recipe

recipe = Recipe(
    model="smollm2",
    encoder_options={"bidirectional": "all", "prompt": "raw", "pooling": "mean", "max_tokens": 512},
    tuning=LoRA(rank=16, alpha=32, dropout=0.05),
    mntp=MNTP(steps=1000, mask_probability=0.2, learning_rate=5e-5),
    objective=InfoNCE(temperature=0.05),
    batch_size=64,
    learning_rate=2e-4,
    seed=42,
)
