"""How an implicit GEMM's sum over K falls into blocks, and the constants of its cost model, in cycles."""

from __future__ import annotations

from .elements import Kind
from .gemm import SPREAD
from .target import target

DEPTH = 192  # products of one K block: a panel then stays in the first-level cache

# Of a part, a group of it, a panel; to table a tap of a panel, to begin to copy it, to copy a vector of one channel with its lanes 1, 2 or
# more cells apart, and each further row of the source that it meets; to multiply a vector by one weight and add it, to load an operand,
# until a sum can be added to again; to store a line of a cache, or a result between those of other remainders.  Fitted to 380 layers
# (standard deviation 31 %).
PART_CYCLES, GROUP_CYCLES, PANEL_CYCLES = 2000.0, 630.0, 170.0
TABLE_CYCLES = 48.0
COPY_START_CYCLES = 9.5
COPY_CYCLES, ROW_CYCLES = {1: 3.2, 2: 4.6, 3: 16.0}, {1: 1.9, 2: 5.0, 3: 0.0}
PRODUCT_CYCLES = {"float32": 0.5, "float64": 0.5, "uint32": 0.5 if target().fused_pairs else 1.0, "int32": 1.4, "int64": 2.0}
LOAD_CYCLES, LATENCY_CYCLES = 0.5, 4.0
PREFETCHES = 2 if SPREAD else 0  # with each product
LINE_CYCLES, SCATTER_CYCLES = 9.7, 1.6
PACKING_CYCLES, FAR_CYCLES = 6.0, 0.75  # a product, in divisions: to pack a vector of pixels, to read a row's weight from far away
# An element of a weight: packed ahead; packed in strips, and where its rows are neighbours; read where it lies, and likewise.
PACK_CYCLES, STRIP_CYCLES, STRIP_COPY_CYCLES, READ_CYCLES, READ_FAR_CYCLES = 1.2, 0.7, 0.2, 0.15, 0.6
CYCLES_A_SECOND = 2.5e9


def blocking(channels: int, kernel: int, kind: Kind) -> tuple[int, int]:
    """Channels and taps of one K block, as even as they can be; more than one block of taps only for the channels of one product."""
    taps, units, depth = max(kernel, 1), -(-channels // kind.together), DEPTH // kind.components
    most = max(1, depth // taps)
    return -(-units // -(-units // most)) * kind.together, -(-taps // -(-taps // depth))


def tile_cycles(rows: int, vectors: int, product: float) -> float:
    """Of one product of a tile: the multiply-adds, two loads or prefetches a cycle, or the latency of a short chain."""
    return max(rows * vectors * product, (rows + vectors + PREFETCHES) * LOAD_CYCLES, LATENCY_CYCLES)
