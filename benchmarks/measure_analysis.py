"""Time and memory of bellm.analyse by the number of layers: every pair of layers, 5,000 texts, as wide as SmolLM2.

CPU time is that of one thread where OPENBLAS_NUM_THREADS=1 is set. Memory is the peak of the process, its vectors and
libraries among it, without a model.
"""

import argparse
import resource
import time

import numpy as np

from bellm.analyse import compare_vectors
from bellm.analyse.analysis import LAYER_MEASURES


def main() -> None:
    """Compare layers of random numbers, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--layers", type=int, default=31)
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--permutations", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="3 layers and 1,000 texts")
    options = parser.parse_args()
    if options.quick:
        options.layers, options.texts = 3, 1000
    draw, size = np.random.default_rng(0), (options.texts, options.width)
    common = draw.normal(size=(options.texts, 40))
    vectors = {
        f"layer {layer}": (common @ draw.normal(size=(40, options.width)) + 3 * draw.normal(size=size)).astype(
            "float32"
        )
        for layer in range(options.layers)
    }
    started = time.process_time()
    found = compare_vectors(vectors, measures=LAYER_MEASURES, permutations=options.permutations, resamples=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(found)} pairs, {time.process_time() - started:.0f} s of CPU, {peak:.0f} MiB at most")


if __name__ == "__main__":
    main()
