"""Mean IoU of a semantic checkpoint at several sizes of its input, on a folder such as `maskformer evaluate` reads.

    python benchmarks/input_size.py street PATH/camvid/val --sizes 360 432 480 528

The size is the shorter side in pixels; the longer one may be four times as long.
"""

import argparse

from maskformer_hf import load
from maskformer_hf.data import SemanticFolder
from maskformer_hf.training import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--sizes", type=int, nargs="+", required=True)
    arguments = parser.parse_args()
    model, processor = load(arguments.checkpoint)
    dataset = SemanticFolder(arguments.data)
    for size in arguments.sizes:
        processor.size = {"shortest_edge": size, "longest_edge": 4 * size}
        result = evaluate(model, processor, dataset)
        print(f"{size:5}  mean IoU {result['mean_iou']:.4f}  {1000 / result['images_per_second']:.0f} ms an image")


if __name__ == "__main__":
    main()
