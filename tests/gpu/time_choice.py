"""Times the cuts of careful rows at gpt-oss's vocabulary: `python tests/gpu/time_choice.py`.

Microseconds of the device for one step's cuts, and of the host to launch them (medians, no CUDA graph, as the engine
plays them): for each set of block shapes, number of rows, and cut; then launch by launch, and for a whole choice beside
the model's step. Logits are `flat` (a normal distribution, in which a nucleus of 0.9 has a quarter of the vocabulary)
or `steep` (some 40 tokens count, as with a trained model).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from gptoss_dist.engine import truncation
from gptoss_dist.engine.choice import Chooser
from gptoss_dist.engine.logits import Logits
from gptoss_dist.engine.request import Request, Row, Sampling
from gptoss_dist.engine.sampler import Draw
from gptoss_dist.engine.staging import Staging
from gptoss_dist.kernels import dependent_launch, truncation_triton
from gptoss_dist.runtime.mesh import Ranks

VOCABULARY, REPLAYS, LIKELY = 201_088, 20, 40
ROWS = (1, 16, 64)
ALL = {"top_p": 0.9, "top_k": 50, "min_p": 0.05}
CUTS = ({"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.05}, ALL)
NAMES = ("COLUMNS", "WARPS", "COARSE_BITS", "FINE_BITS", "CHUNK", "BORDER_WARPS")
SHAPES = (
    (2048, 4, 4, 4, 4096, 16),
    (2048, 4, 3, 3, 4096, 16),
    (4096, 4, 4, 4, 4096, 16),
    (4096, 4, 3, 3, 4096, 16),
    (4096, 8, 4, 4, 2048, 8),
)
"""Values of the names in `truncation_triton`."""
DEVICE = torch.device("cuda")


def microseconds(call: Callable[[], object]) -> str:
    """Of the device and of the host: medians."""
    device, host = [], []
    for _ in range(REPLAYS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(1_000_000)  # the host is ahead: what is timed is the device
        start.record()
        begun = time.perf_counter()
        call()
        host.append((time.perf_counter() - begun) * 1e6)
        end.record()
        end.synchronize()
        device.append(start.elapsed_time(end) * 1e3)
    return f"device {statistics.median(device[3:]):7.1f}  host {statistics.median(host[3:]):6.1f}"


def logits_of(rows: int, kind: str) -> torch.Tensor:
    """As the model computes them."""
    logits_RV = torch.randn(rows, VOCABULARY, device=DEVICE) * 2
    if kind == "steep":
        likely = torch.randint(VOCABULARY, (rows, LIKELY), device=DEVICE)
        logits_RV.scatter_add_(1, likely, torch.full_like(likely, 20, dtype=torch.float32))
    return logits_RV.bfloat16()


def cutting(rows: int, kind: str, asked: dict[str, float]) -> Callable[[], object]:
    """One step's cuts."""
    cuts = truncation.cuts_of([Sampling(1, **asked)] * rows, VOCABULARY, Staging(DEVICE))
    assert cuts is not None
    logits_RV, rows_L = logits_of(rows, kind), torch.arange(rows, device=DEVICE)
    return lambda: truncation_triton.truncate(logits_RV, rows_L, cuts)


def choosing(rows: int, asked: dict[str, float]) -> Callable[[], object]:
    """All that follows a step of the model that chose the tokens of quick rows itself."""
    numbers = [Row(Request(str(row), (1,), Sampling(9, seed=row, **asked)), [1]) for row in range(rows)]
    chooser, logits_RV = Chooser(Ranks(1, 1, 0, 0, None), DEVICE), logits_of(rows, "steep")
    zero_R = torch.zeros(rows, dtype=torch.int64, device=DEVICE)
    draw = Draw(torch.ones(rows, device=DEVICE), zero_R, zero_R)
    return lambda: chooser.choose(numbers, Logits(logits_RV, quick_R=zero_R), draw)


def launches(call: Callable[[], object]) -> str:
    """Microseconds of the device for each kernel, in the order of their names."""
    call()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for _ in range(REPLAYS):
            call()
        torch.cuda.synchronize()
    kernels = [one for one in recorded.key_averages() if one.device_type == torch.autograd.DeviceType.CUDA]
    spent = sorted((one.key, one.self_device_time_total / REPLAYS) for one in kernels)
    return "  ".join(f"{name[:24]} {time:.1f}" for name, time in spent)


def use(shape: tuple[int, ...]) -> None:
    """Kernels of these block shapes from here on."""
    for name, value in zip(NAMES, shape, strict=True):
        setattr(truncation_triton, name, value)


def main() -> None:
    """Print a line for each."""
    print(torch.cuda.get_device_name(), torch.__version__, NAMES)
    for shape in SHAPES:
        use(shape)
        for rows in ROWS:
            for kind, cuts in (("flat", CUTS), ("steep", CUTS[:1])):
                for asked in cuts:
                    print(shape, f"{rows:3} rows {kind:5}", microseconds(cutting(rows, kind, asked)), asked, flush=True)
            print(shape, f"{rows:3} rows  {launches(cutting(rows, 'flat', CUTS[0]))}", flush=True)
    use(SHAPES[0])
    for rows in ROWS:
        dependent_launch.enable(False)
        print(f"{rows:3} rows, none begins early", microseconds(cutting(rows, "flat", CUTS[0])), flush=True)
        dependent_launch.enable(True)
        for asked in ({}, CUTS[0], ALL, {"presence_penalty": 0.5}):
            print(f"{rows:3} rows, whole choice", microseconds(choosing(rows, asked)), asked, flush=True)


if __name__ == "__main__":
    main()
