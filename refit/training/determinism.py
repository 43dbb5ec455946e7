"""Randomness without state, and the environment in which a result is repeatable.

Every random number is a hash of (seed, purpose, epoch, example): nothing is drawn from a generator that moves.
So neither the order of batches, nor the number of loader workers, nor an interruption can change a result, and
a resume has no random state to restore.
"""

import dataclasses
import hashlib
import os
import platform
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import numpy as np

from ..model.card import Environment
from .choices import Precision

if TYPE_CHECKING:
    import torch


def example_keys(sha256s: Sequence[str]) -> np.ndarray:
    """(n,) uint64: the first 64 bits of each example's SHA-256, its identity in `uniforms`."""
    return np.array([int(sha256[:16], 16) for sha256 in sha256s], dtype=np.uint64)


def uniforms(seed: int, purpose: str, epoch: int, keys: np.ndarray, num_draws: int) -> np.ndarray:
    """Uniform numbers in [0, 1) that depend on nothing but the arguments: (n, num_draws) float64.

    SplitMix64 (Steele, Lea and Flood 2014) over a per-example start that SHA-256 of (seed, purpose, epoch) shifts.
    """
    shift = int.from_bytes(hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()[:8])
    starts = _mix(keys ^ np.uint64(shift))[:, None]  # (n, 1)
    counters = np.arange(1, num_draws + 1, dtype=np.uint64)[None, :] * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray((_mix(starts + counters) >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _mix(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def step_seed(seed: int, step: int) -> int:
    """The seed of torch's own generator for one training step (dropout and the like)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/step/{step}".encode()).digest()[:8]) >> 1


def seed_generators(seed: int, device: "torch.device") -> None:
    """As torch.manual_seed for the CPU and this device; that one formats a stack for each kind of device: 3 ms."""
    import torch

    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def be_deterministic(num_threads: int, device: str) -> "torch.device":
    """Fix what torch lets the machine choose, and give back the device that `finetune.device` means.

    Raises:
        ParamsError: a GPU was asked for by name and there is none; there is no silent fallback.
    """
    import torch

    from ..errors import ParamsError

    if device == "cuda" and not torch.cuda.is_available():
        raise ParamsError("`finetune.device` is cuda, but torch sees no GPU here; use auto or cpu")
    # cuBLAS reads it when CUDA starts; without a fixed workspace torch refuses matrix products on a GPU.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(num_threads)
    # As use_deterministic_algorithms(True), which also imports the compiler: 1.6 s and 150 MB for what is not used.
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing here reads it
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    # Networks without a deterministic CUDA kernel for some step say so by an error, which is what we want;
    # torch also warns about features that Refit does not use.
    warnings.filterwarnings("ignore", message=".*Lazy modules.*")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def environment(
    device: "torch.device", precision: Precision | None = None, packages: Sequence[str] = ()
) -> Environment:
    """The environment class of what is made here.

    Args:
        precision: of a training.
        packages: what examples are read with, beside what all trainings need.
    """
    import torch
    from PIL import features

    on_gpu = device.type == "cuda"
    others = sorted(set(packages) - {field.name for field in dataclasses.fields(Environment)})
    return Environment(
        python=platform.python_version(),
        machine=platform.machine(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        processor=_processor(),
        device=torch.cuda.get_device_name(device) if on_gpu else "cpu",
        num_threads=torch.get_num_threads(),
        precision=precision,
        torch=str(torch.__version__),
        torchvision=version("torchvision"),
        numpy=version("numpy"),
        pillow=version("pillow"),
        libjpeg=features.version("libjpeg_turbo") or features.version("jpg"),
        libraries=tuple(f"{name} {version(name)}" for name in others),
        cuda=torch.version.cuda if on_gpu else None,
        cudnn=str(torch.backends.cudnn.version()) if on_gpu else None,  # type: ignore[no-untyped-call]
    )


def _processor() -> str:
    """Its name, and whether it has bf16 of its own, which decides the kernels."""
    import torch

    found = torch.cpu.get_capabilities()
    own = [name for name in ("avx512_bf16", "amx_bf16") if found.get(name)]
    return ", ".join([str(found.get("cpu_name", platform.processor())), *own])
