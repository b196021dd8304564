"""Train encoders on pairs, triplets, rated pairs or texts that say the same; needs the extra `train`.

from bellm.train import LoRA, Recipe, load_dataset, train

recipe = Recipe(model="smollm2", encoder_options={"bidirectional": "last:8"}, tuning=LoRA(rank=32))
encoder = train(recipe, load_dataset("triplets.csv"), "run")
"""

from typing import TYPE_CHECKING

from bellm.extras import lazy_exports

if TYPE_CHECKING:
    from bellm.train.dataset import Dataset, load_dataset
    from bellm.train.distributed import Distributed
    from bellm.train.embedded_batch import EmbeddedBatch
    from bellm.train.examples import Example
    from bellm.train.loop import TrainProgress, train
    from bellm.train.memory_plan import MemoryPlan, plan_memory
    from bellm.train.metrics import TensorBoardLog
    from bellm.train.mining import mine_hard_negatives
    from bellm.train.objectives import GRL, AnglE, AutoObjective, CoSENT, Distillation, Espresso, InfoNCE, Needs
    from bellm.train.recipe import MNTP, FullFineTuning, LoRA, Recipe, load_recipe
    from bellm.train.trainable import load_untrained

__all__ = ["GRL", "MNTP", "AnglE", "AutoObjective", "CoSENT", "Dataset", "Distillation", "Distributed"]
__all__ += ["EmbeddedBatch", "Espresso", "Example", "FullFineTuning", "InfoNCE", "LoRA", "MemoryPlan"]
__all__ += ["Needs", "Recipe", "TensorBoardLog", "TrainProgress", "load_dataset", "load_recipe", "load_untrained"]
__all__ += ["mine_hard_negatives", "plan_memory", "train"]

__getattr__, __dir__ = lazy_exports(__name__, "train")
