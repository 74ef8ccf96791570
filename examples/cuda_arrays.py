"""Convolutions of arrays on a GPU: Numba's, CuPy's and torch's, in and out, on streams, and a plan in a loop.

    pip install -e ".[cuda13]"        (or cuda12, for drivers of CUDA 12; CuPy and torch take part where they are installed)
    python examples/cuda_arrays.py

Says what is missing where there is no GPU.
"""

import importlib.util
import sys

import numpy as np

import numbaconv

if not numbaconv.cuda.is_available():
    print(f"No GPU to show this on: {numbaconv.cuda.unavailable_reason()}")
    sys.exit(0)

from numba import cuda

rng = np.random.default_rng(0)
volume = rng.standard_normal((1, 1, 96, 96, 96), dtype=np.float32)  # N, C, D, H, W
filters = rng.standard_normal((8, 1, 5, 5, 5), dtype=np.float32) / 11

# ---- NumPy to the device and back: each copy is one that you write -----------------------------------------------------------
x, w = cuda.to_device(volume), cuda.to_device(filters)
y = numbaconv.conv3d(x, w, padding=2)  # on the device; the call does not wait for the result
print("Numba:", type(y).__name__, y.shape)
on_the_host = numbaconv.conv3d(volume, filters, padding=2)
print("  largest difference from the CPU's result:", np.abs(y.copy_to_host() - on_the_host).max())

try:
    numbaconv.conv3d(x, filters, padding=2)
except TypeError as error:
    print("  no hidden copy:", error)

# ---- CuPy: results are CuPy's, from its memory pool, on its current stream ----------------------------------------------------
if importlib.util.find_spec("cupy"):
    import cupy

    with cupy.cuda.Stream():
        y = numbaconv.conv3d(cupy.asarray(volume), cupy.asarray(filters), padding=2)
        print("CuPy:", type(y).__module__, y.shape, "mean", float(y.mean()))

# ---- torch: results are torch's; gradients by numbaconv.grad, or by layers --------------------------------------------------
if importlib.util.find_spec("torch"):
    import torch

    x_torch, w_torch = torch.from_numpy(volume).cuda(), torch.from_numpy(filters).cuda()
    y = numbaconv.conv3d(x_torch, w_torch, padding=2)
    print("torch:", type(y).__name__, tuple(y.shape), y.device)
    gradient = numbaconv.grad.conv3d_weight(x_torch, w_torch.shape, torch.ones_like(y), padding=2)
    print("  gradient of the sum with respect to the filters:", tuple(gradient.shape))

# ---- a plan in a loop: decided and packed once, no allocation in a call with out, two events around it -------------------------
plan = numbaconv.plan(x, w, padding=2)
print(plan)
out = cuda.device_array((1, 8, 96, 96, 96), np.float32)
stream = cuda.stream()
start, end = cuda.event(), cuda.event()
plan(x, out=out, stream=stream)  # the first call compiles
start.record(stream)
for _ in range(100):
    plan(x, out=out, stream=stream)
end.record(stream)
end.synchronize()
milliseconds = cuda.event_elapsed_time(start, end) / 100
print(f"a call takes {milliseconds:.3f} ms: {plan.problem.flops / milliseconds / 1e9:.2f} TFLOP/s")

# ---- a layer on the device -------------------------------------------------------------------------------------------------
layer = numbaconv.Conv3d(1, 8, 5, padding=2, device="cuda", rng=0)
print(layer, "on the device:", type(layer(x)).__name__, "and back:", type(layer.to("cpu")(volume)).__name__)
