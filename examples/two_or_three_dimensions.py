"""Slices of a brain as channels or as depth: multi-channel 2-D convolution and 3-D convolution are not the same.

A 2-D filter has weights for every channel, but it slides along height and width only: what it finds in all channels is summed, and a
plane comes out.  A 3-D filter slides along depth too, with the same weights at every depth, and a volume comes out.

    python examples/two_or_three_dimensions.py [PICTURE.png]        needs: pip install -e ".[demo]"
"""

import sys

import numpy as np

from numbaconv import conv2d, conv3d
from numbaconv.demo.brain import load_brain
from numbaconv.demo.draw import Sheet
from numbaconv.demo.picture import draw_lesson

picture = sys.argv[1] if len(sys.argv) > 1 else "two_or_three_dimensions.png"
volume = load_brain()
depth, height, width = volume.shape

# Slices are channels: (N, C, H, W) with C = depth.
flat_weight = np.full((1, depth, 5, 5), 1 / (25 * depth), np.float32)
plane = conv2d(volume[None], flat_weight, padding=2)
print("conv2d", (1, *volume.shape), "with", flat_weight.shape, "gives a plane", plane.shape)

# Slices are depth: (N, C, D, H, W) with C = 1.
cube_weight = np.full((1, 1, 5, 5, 5), 1 / 125, np.float32)
smoothed = conv3d(volume[None, None], cube_weight, padding=2)
print("conv3d", (1, 1, *volume.shape), "with", cube_weight.shape, "gives a volume", smoothed.shape)

# Move the brain up by ten slices.  The 3-D result moves with it: its filter is the same at every depth.
moved = conv3d(np.roll(volume, 10, axis=0)[None, None], cube_weight, padding=2)
change = np.abs(moved[0, 0, 15:-5] - smoothed[0, 0, 5:-15]).max()
print(f"the brain moved by ten slices: the 3-D result moves along, largest difference {change:.1e}")

# A 3-D filter as deep as the volume has nowhere to slide, and does what the 2-D filter does.
tall = conv3d(volume[None, None], flat_weight[:, None], padding=(0, 2, 2))
change = np.abs(tall[:, :, 0] - plane).max()
print(f"a 3-D filter {depth} slices deep gives {tall.shape}: the plane again, largest difference {change:.1e}")

sheet = Sheet()
draw_lesson(sheet, volume, plane[0, 0], smoothed[0, 0])
sheet.save(picture)
print("picture saved in", picture)
