"""GRL: Man et al. 2024, "ULLME: A Unified Framework for LLM Embeddings with Generation-Augmented Learning", 2408.03402.

Open layers retrieve, the same weights with causal layers generate, and both are trained to agree: contrastive loss,
preference (DPO) for generating the positive rather than the negative, and the divergence of the retrieval distribution
and the generation distribution over candidates. Of the released code this leaves out what is no part of the method:
losses that had no gradient, probabilities that counted the prompt, groups mixed up in batches of more than one. The
divergence is the paper's KL(retrieval || generation); the code has the reverse.

Data: anchor, one positive and equally many negatives in every row.
"""

from bellm.train import GRL, InfoNCE, LoRA, Recipe

recipe = Recipe(
    model="smollm2",
    encoder_options={"bidirectional": "all", "prompt": "instruct", "pooling": "mean-text", "max_tokens": 512},
    tuning=LoRA(rank=16, alpha=32, dropout=0.1),
    objective=GRL(InfoNCE(temperature=0.05), preference="dpo", beta=0.1, weights=(1.0, 1.0, 1.0)),
    batch_size=64,
    learning_rate=1e-4,
    schedule="cosine",
    seed=42,
)
