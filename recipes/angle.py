"""AnglE: Li and Li 2023, "AnglE-optimized Text Embeddings", arXiv 2309.12871, as its authors train it on NLI.

The weights are those of the released AnglE-LLaMA models: 1 for the cosine term, 35 for the in-batch negatives, 1 for
the angle, all at temperature 0.05. The angle term is the released code's; `form="published"` follows the paper, which
orders another quantity. Adapters and learning rate are those of the second version of the models.

Data: rated pairs (a score column), or anchor, positive and hard negative.
"""

from bellm.train import AnglE, LoRA, Recipe

recipe = Recipe(
    model="smollm2",
    encoder_options={"prompt": "angle", "pooling": "last", "max_tokens": 50},
    tuning=LoRA(rank=32, alpha=32, dropout=0.1),
    objective=AnglE(cosine=1.0, in_batch=35.0, angle=1.0, temperature=0.05, form="released"),
    batch_size=120,
    learning_rate=1e-4,
    seed=42,
)
