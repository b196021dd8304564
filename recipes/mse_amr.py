"""MSE-AMR: Cai et al. 2022, "Retrofitting Multilingual Sentence Embeddings with Abstract Meaning Representation".

EMNLP 2022, arXiv 2210.09773.

A model that reads sentences and their AMR graphs alike: every text of a triplet is itself or its linearised graph, at
even odds. The vector of a sentence is then that of its text beside that of its graph:

    bellm train recipes/mse_amr.py --data triplets.csv --graphs triplets.amr -o run/
    bellm combine run/model 'run/model?transform=amr' -o both/

Where the paper and this recipe differ:

- **Model.** The paper trains BERT of its own for graphs, beside any sentence encoder. Here one decoder reads both.
- **Views.** The paper has the graph parsed from English and from five translations, each as likely as the text, and
  comes three times to each triplet. Here text and graph.
- **Vocabulary.** The paper adds relations, predicates and pointers as tokens. Here they are the pieces that the model's
  tokenizer makes of them, so that a graph takes about five times the tokens of its text: 192 are allowed, the paper
  has 32.
- **Adapters and prompt.** PromptEOL's, with their learning rate. The loss is the paper's: contrastive with hard
  negatives, both ways, temperature 0.05.

Data: anchor, positive and hard negative; a file of graphs (--graphs).
"""

from bellm.train import InfoNCE, LoRA, Recipe

recipe = Recipe(
    model="smollm2",
    encoder_options={"prompt": "prompteol", "pooling": "last", "max_tokens": 192},
    tuning=LoRA(rank=64, alpha=16, dropout=0.05),
    objective=InfoNCE(temperature=0.05, symmetric=True),
    batch_size=256,
    learning_rate=5e-4,
    seed=42,
)
"""Without --graphs it is supervised SimCSE on texts."""
