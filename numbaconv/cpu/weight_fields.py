"""The geometry of a weight gradient's kernels, an int64 array.

First three axes each, then single numbers, then address and five strides of an array, in its elements or, where they are complex, in
their components; those have ITEM and RESULT_ITEM bytes, and the dtypes LOADED and STORED.
"""

from __future__ import annotations

from .weight_tiles import DOT_TILES

OUT, IN, KERNEL, STRIDE, DILATION, PAD, STRIPS, BOX, SEGMENTS = range(0, 27, 3)
(
    MODE, IMAGES, GROUPS, CHANNELS, FILTERS, CHANNEL_BLOCK, FILTER_BLOCK, GROUP_BLOCK, CHANNEL_BLOCKS, FILTER_BLOCKS, BLOCKS, SHARES,
    KIND, IN_PLACE, GRAD_IN_PLACE, GRAD_MERGES, RESULT_TAP, ROW, PLANE, CHANNEL, GRAD_ROW, SCRATCH, PANEL, SUMS_STEP, GROUP_SUMS,
    LOADED, STORED, ITEM, RESULT_ITEM, COMPONENTS, NEGATED, BANDS, FILTER_UNIT, WINDOW, CHANNEL_UNIT, TAPS_APART,
) = range(27, 63)  # fmt: skip
SOURCE, GRAD, RESULT, FIELDS = 63, 69, 75, 81

# The KIND of a block: the number of a dot tile, or
CHANNEL_LANES = len(DOT_TILES)  # lanes are output channels
ROW_BANDS = CHANNEL_LANES + 1  # lanes are pixels, and kernel rows are taken together
GROUP_LANES = CHANNEL_LANES + 2  # lanes are groups
