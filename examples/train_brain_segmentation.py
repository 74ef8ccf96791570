"""A small 3-D U-Net learns the grey-matter map of a brain from its T1 image, by NumPy and numbaconv alone, in under three minutes.

    python train_brain_segmentation.py [--engine torch] [--steps N] [--output FILE]

Needs the data and Pillow: pip install "numbaconv[train]".  ``--engine torch`` trains torch and numbaconv from the same weights on the same
batches, compares their losses and prints both times.  ``python -m numbaconv demo --train`` is the same.

The network's forward and backward pass, its loss and its optimiser are in numbaconv/demo/unet.py: that is what to read.  One step is

    logits, outputs = forward(layers, x, ...)      # layers in training mode keep their inputs
    loss, gradient = cross_entropy(logits, target)
    backward(layers, outputs, gradient)            # layer.backward() adds to layer.weight_grad and layer.bias_grad
    adam.step(rate)                                # changes layer.weight and layer.bias in place
"""

import argparse
import sys
from pathlib import Path

from numbaconv.demo.train import ENGINES, STEPS, train_and_report

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=ENGINES, default="numbaconv")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=Path("train_brain_segmentation.png"))
    options = parser.parse_args()
    sys.exit(not train_and_report(options.output, options.engine, options.steps))
