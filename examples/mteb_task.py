"""A task of mteb on an encoder of bellm, without a network: STS-Benchmark read from a folder.

Run it with `python examples/mteb_task.py --data FOLDER`; needs pip install 'bellm[evaluate]'. Without --data and
BELLM_DATA the pairs come from the Hub. Any other task, with the data that mteb fetches itself, is
`mteb.evaluate(MtebEncoder(encoder), mteb.get_task(NAME))`.
"""

import argparse
import warnings
from pathlib import Path

import mteb
import transformers
from datasets import Dataset, DatasetDict

from bellm import Encoder
from bellm.data import read_sts
from bellm.evaluate import MtebEncoder


def main() -> None:
    """Read, embed, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with stsbenchmark/sts-test.csv")
    parser.add_argument("--model", default="smollm2", help="Hub id, folder, GGUF file or alias (smollm2)")
    parser.add_argument("--bidirectional", default="none", help="which layers look both ways (none)")
    parser.add_argument("--count", type=int, help="only so many pairs")
    options = parser.parse_args()
    transformers.logging.disable_progress_bar()

    found = read_sts("STSBenchmark", options.data)
    columns = {"sentence1": found.left, "sentence2": found.right, "score": found.gold_N.tolist()}
    task = mteb.get_task("STSBenchmark")
    task.dataset = DatasetDict(
        test=Dataset.from_dict({name: column[: options.count] for name, column in columns.items()})
    )
    task.data_loaded = True

    encoder = Encoder.from_pretrained(options.model, bidirectional=options.bidirectional)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # mteb has a later version of the task, with other pairs.
        result = mteb.evaluate(MtebEncoder(encoder), task, cache=None)
    print(encoder)
    print(f"{task.metadata.name}: Spearman of cosine {100 * result.task_results[0].get_score():.2f}")


if __name__ == "__main__":
    main()
