"""numbaconv in twenty lines: NumPy arrays in, a NumPy array out, with torch's arguments and torch's numbers."""

import numpy as np

import numbaconv

rng = np.random.default_rng(0)
x = rng.standard_normal((2, 16, 24, 48, 48), dtype=np.float32)  # N, C, D, H, W
weight = rng.standard_normal((32, 16, 3, 3, 3), dtype=np.float32)
bias = np.zeros(32, np.float32)

y = numbaconv.conv3d(x, weight, bias, stride=2, padding=1)
print("conv3d", x.shape, "->", y.shape, y.dtype)

layer = numbaconv.Conv3d(16, 32, kernel_size=3, stride=2, padding=1, rng=0)  # weights drawn as torch draws them
print(layer, "->", layer(x).shape)

prepared = numbaconv.plan(x.shape, weight, bias, stride=2, padding=1)  # decide and pack once, call often
print("plan and function agree to the last bit:", np.array_equal(prepared(x), y))

print(numbaconv.explain(x, weight, bias, stride=2, padding=1))  # what runs, and why
