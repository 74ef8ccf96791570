"""Weights of a torch model in numbaconv: the same numbers without torch.

Saves a small model as a safetensors file, loads it into numbaconv's layers by torch's names, and compares the outputs.  Where torch
isn't installed, numbaconv's own layers stand in for the model and write the file.

    python examples/torch_weights.py [FILE.safetensors]
"""

import sys
from importlib.util import find_spec

import numpy as np

import numbaconv

path = sys.argv[1] if len(sys.argv) > 1 else "model.safetensors"
x = np.random.default_rng(0).standard_normal((1, 1, 16, 32, 32), dtype=np.float32)


def layers(seed: int) -> list[numbaconv.Conv3d | numbaconv.ConvTranspose3d]:
    """The convolutions of the model, whose names in torch's state dict are 0, 2 and 4."""
    return [
        numbaconv.Conv3d(1, 8, 3, padding=1, rng=seed),
        numbaconv.Conv3d(8, 8, 3, stride=2, padding=1, groups=4, rng=seed),
        numbaconv.ConvTranspose3d(8, 1, 4, stride=2, padding=1, rng=seed),
    ]


def forward(first: numbaconv.Conv3d, second: numbaconv.Conv3d, third: numbaconv.ConvTranspose3d) -> np.ndarray:
    return third(np.maximum(second(np.maximum(first(x), 0)), 0))


if find_spec("torch") is not None:
    import torch
    from safetensors.torch import save_file
    from torch.nn import Conv3d, ConvTranspose3d, ReLU, Sequential

    model = Sequential(
        Conv3d(1, 8, 3, padding=1),
        ReLU(),
        Conv3d(8, 8, 3, stride=2, padding=1, groups=4),
        ReLU(),
        ConvTranspose3d(8, 1, 4, stride=2, padding=1),
    )
    save_file(model.state_dict(), path)
    with torch.no_grad():
        expected = model(torch.from_numpy(x)).numpy()
    source = f"torch {torch.__version__}"
else:
    from safetensors.numpy import save_file

    model = layers(seed=1)
    save_file({f"{2 * i}.{name}": array for i, layer in enumerate(model) for name, array in layer.state_dict().items()}, path)
    expected = forward(*model)
    source = "numbaconv itself (torch is not installed, so its layers wrote the file)"

loaded = layers(seed=2)
for i, layer in enumerate(loaded):
    layer.load_safetensors(path, prefix=f"{2 * i}.")
    print(f"{path}: {2 * i}.* -> {layer}")
found = forward(*loaded)

error = np.abs(found - expected).max()
print(f"output {found.shape}; largest difference from {source}: {error:.1e}, values up to {np.abs(expected).max():.2g}")
np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
