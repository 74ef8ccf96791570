"""``python -m numbaconv``: what is installed, what a convolution would do, and the demo."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import __version__
from .bench.command import add_options

_GEOMETRY = ("bias", "stride", "padding", "dilation", "groups", "output_padding", "padding_mode", "dtype", "out_dtype", "transposed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0, 1 where a check failed or a package is missing, 2 for bad arguments."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        status: int = options.run(options)
    except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
        parser.exit(2, f"{parser.prog} {options.command}: error: {error}\n")
    except (FileNotFoundError, ModuleNotFoundError) as error:
        parser.exit(1, f"{parser.prog} {options.command}: {error}\n")
    return status


def info(options: argparse.Namespace) -> int:
    """Versions, the CPU that is compiled for, threads, and the algorithms, fastest first."""
    import numba

    from . import cuda
    from .choose import registry
    from .cpu.target import target

    cpu = target()
    print(f"numbaconv {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for package in ("numba", "llvmlite", "numpy", "ml_dtypes", "safetensors", "scipy", "pillow", "numba-cuda"):
        print(f"  {package:<12}{_version(package)}")
    print(f"CPU target    {8 * cpu.vector_bytes}-bit vectors, {cpu.registers} registers, {'fma' if cpu.fma else 'no fma'}")
    print(f"threads       {numba.get_num_threads()}")
    print(f"algorithms    {', '.join(f'{a.name} ({a.accuracy})' for a in registry('cpu'))}")
    reason = cuda.unavailable_reason()
    print(f"CUDA          {reason or 'available: ' + ', '.join(a.name for a in registry('cuda'))}")
    return 0


def explain(options: argparse.Namespace) -> int:
    """Print what a problem's text form, or shapes and arguments, would be computed by."""
    from . import explain as explain_shapes
    from .arrays import ELEMENTS, dtype_named
    from .choose import choose
    from .explanation import Explanation
    from .problem import Problem

    asked = {"precision": options.precision, "algorithm": options.algorithm, "device": options.device}
    given = {name: getattr(options, name) for name in _GEOMETRY if getattr(options, name) is not None}
    if len(options.problem) == 1:
        if given:
            raise ValueError(f"--{next(iter(given)).replace('_', '-')} goes with two shapes; the text form of a problem says all of it")
        problem = Problem.parse(options.problem[0])
        print(Explanation(problem, choose(problem, **asked | {"device": options.device or "cpu"})))
        return 0
    if len(options.problem) > 2:
        raise ValueError(f"expected the text form of a problem, or an input shape and a weight shape, got {len(options.problem)} arguments")
    source, weight = options.problem
    input_shape, weight_shape = _shape("the input shape", source), _shape("the weight shape", weight)
    if given.pop("bias", False) and len(weight_shape) > 1:
        given["bias"] = (weight_shape[1] * (options.groups or 1) if options.transposed else weight_shape[0],)
    for name in ("dtype", "out_dtype"):
        if given.get(name) in ELEMENTS:
            given[name] = dtype_named(given[name])
    print(explain_shapes(input_shape, weight_shape, **given, **asked))
    return 0


def demo(options: argparse.Namespace) -> int:
    """Run the demo; 1 where a check failed."""
    for name, goes in (("crop", not options.train), ("engine", options.train), ("steps", options.train)):
        if getattr(options, name) is not None and not goes:
            raise ValueError(f"--{name} goes with {'--train' if not options.train else 'the demo without --train'}")
    output = Path(options.output or ("numbaconv_training.png" if options.train else "numbaconv_demo.png"))
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output must name a .png file, got {str(output)!r}")
    if not os.access(output.parent, os.W_OK) or output.is_dir():
        raise ValueError(f"--output must be a file in a folder that exists and can be written to, got {str(output)!r}")
    if _version("pillow") == _ABSENT:
        raise ModuleNotFoundError('the demo draws with Pillow, which is not installed: pip install "numbaconv[demo]"')
    if options.train:
        from .demo.train import STEPS, train_and_report

        return 0 if train_and_report(output, options.engine or "numbaconv", STEPS if options.steps is None else options.steps) else 1
    from .demo import run

    return 0 if run(output, options.crop) else 1


def bench(options: argparse.Namespace) -> int:
    """Time layers beside other libraries; 1 where an answer of ours is wrong."""
    from .bench.command import run

    return run(options)


def warmup(options: argparse.Namespace) -> int:
    """Compile the usual kernels ahead; 1 where they cannot be kept."""
    from .warmup import warm, warm_for_gpu

    return warm_for_gpu(options.dtype, options.architecture) if options.device == "cuda" else warm(options.dtype)


_ABSENT = "not installed"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return _ABSENT


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m numbaconv", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], int], summary: str, **kwargs: Any) -> argparse.ArgumentParser:
        found: argparse.ArgumentParser = commands.add_parser(run.__name__, help=summary, description=summary, **kwargs)
        found.set_defaults(run=run)
        return found

    command(info, "print versions, the CPU target, threads and algorithms")

    show = command(demo, "convolve a brain volume, check and time it, and save a picture")
    show.add_argument("--crop", type=int, metavar="N", help="use the central cube of N voxels (at least 8)")
    show.add_argument("--output", metavar="FILE", help="the picture, a .png file (default: numbaconv_demo.png or numbaconv_training.png)")
    show.add_argument("--train", action="store_true", help="train a small 3-D U-Net on a brain instead")
    show.add_argument("--engine", metavar="NAME", help="with --train: numbaconv (the default), or torch: both, and compare them")
    show.add_argument("--steps", type=int, metavar="N", help="with --train: steps of training")

    ahead = command(warmup, "compile the usual kernels ahead, so that no program waits for them")
    ahead.add_argument(
        "--dtype", type=lambda text: text.split(","), default=["float32"], metavar="NAME[,NAME...]", help="(default: float32)"
    )

    ahead.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    ahead.add_argument(
        "--architecture", metavar="SM", help="with --device cuda: for this one instead of the present GPU's, sm_90a for instance"
    )

    add_options(command(bench, "time layers beside other libraries, and write tables and a chart"))

    what = command(
        explain,
        "print what a convolution would do, without doing it",
        epilog="example: python -m numbaconv explain 1,32,64,64,64 64,32,3,3,3 --padding 1 --stride 2",
    )
    what.add_argument("problem", nargs="+", metavar="PROBLEM", help="the text form of a problem, or an input shape and a weight shape")
    what.add_argument("--bias", action="store_const", const=True, help="with a bias")
    what.add_argument("--transposed", action="store_const", const=True, help="a transposed convolution")
    for name in ("stride", "dilation", "output-padding"):
        what.add_argument(f"--{name}", type=_numbers, metavar="N[,N...]")
    what.add_argument("--padding", type=_padding, metavar="N[,N...]", help="integers, pairs as LO:HI, or one of torch's strings")
    what.add_argument("--groups", type=int, metavar="N")
    for name in ("padding-mode", "dtype", "out-dtype", "precision"):
        what.add_argument(f"--{name}", metavar="NAME")
    what.add_argument("--algorithm", default="auto", metavar="NAME", help="ask for this one instead of the best")
    what.add_argument("--device", choices=("cpu", "cuda"), help="whose algorithms (default: cpu)")
    return parser


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> tuple[int, ...]:
    """``2,1`` as a tuple; of length 1, it counts for every axis."""
    return _shape("the value", text)


def _padding(text: str) -> Any:
    """``1``, ``1,2``, pairs ``0:1,2:2``, or a string for the front-end to judge."""
    if ":" in text:
        return tuple(_shape("a pair", pair.replace(":", ",")) for pair in text.split(","))
    return text if text.isidentifier() else _numbers(text)


def _shape(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{name} must be integers with commas between them, as 1,32,64,64,64, got {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
