"""Train encoders on pairs, triplets, rated pairs or texts that say the same; needs the extra `train`.

from bellm.train import LoRA, Recipe, load_dataset, train

recipe = Recipe(model="smollm2", encoder_options={"bidirectional": "last:8"}, tuning=LoRA(rank=32))
encoder = train(recipe, [(load_dataset("triplets.csv"), 1.0)], Path("run"))
"""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.train.dataset import Dataset
    from bellm.train.dataset_files import load_dataset
    from bellm.train.distributed import Distributed
    from bellm.train.embedded_batch import EmbeddedBatch
    from bellm.train.examples import Example
    from bellm.train.loop import Progress, train
    from bellm.train.metrics import TensorBoardLog
    from bellm.train.mining import mine_hard_negatives
    from bellm.train.objectives import GRL, AnglE, AutoObjective, CoSENT, Distillation, Espresso, InfoNCE, Needs
    from bellm.train.recipe import MNTP, FullFineTuning, LoRA, Recipe

__all__ = ["AnglE", "AutoObjective", "CoSENT", "Dataset", "Distillation", "Distributed", "EmbeddedBatch", "Espresso"]
__all__ += ["Example", "FullFineTuning", "GRL", "InfoNCE", "LoRA", "MNTP", "Needs", "Progress", "Recipe"]
__all__ += ["TensorBoardLog", "load_dataset", "mine_hard_negatives", "train"]

__getattr__ = lazy_exports(
    __name__,
    "train",
    {
        **dict.fromkeys(("Progress", "train"), "loop"),
        **dict.fromkeys(("FullFineTuning", "LoRA", "MNTP", "Recipe"), "recipe"),
        **dict.fromkeys(("AnglE", "AutoObjective", "CoSENT", "Distillation", "Espresso"), "objectives"),
        **dict.fromkeys(("GRL", "InfoNCE", "Needs"), "objectives"),
        "Dataset": "dataset",
        "Distributed": "distributed",
        "EmbeddedBatch": "embedded_batch",
        "Example": "examples",
        "TensorBoardLog": "metrics",
        "load_dataset": "dataset_files",
        "mine_hard_negatives": "mining",
    },
)
