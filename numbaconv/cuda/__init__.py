"""The CUDA side: device arrays, the algorithms that convolve them, and whether there is a GPU at all."""
