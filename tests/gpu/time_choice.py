"""Times the cuts of careful rows at gpt-oss's vocabulary: `python tests/gpu/time_choice.py`.

Each line: rows, what cuts them, how the nucleus is found; microseconds of the device for one step's cuts, and of the
host to launch them (medians, no CUDA graph, as the engine plays them).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from gptoss_dist.engine import truncation
from gptoss_dist.engine.request import Sampling
from gptoss_dist.engine.staging import Staging
from gptoss_dist.kernels import nucleus_reference, nucleus_triton

VOCABULARY, REPLAYS = 201_088, 20
WAYS = {"sorted": nucleus_reference.keep_nucleus, "digits": nucleus_triton.keep_nucleus}


def microseconds(call: Callable[[], object]) -> tuple[float, float]:
    """(of the device, of the host): medians."""
    device, host = [], []
    for _ in range(REPLAYS + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(4_000_000)  # the host is ahead: what is timed is the device
        start.record()
        begun = time.perf_counter()
        call()
        host.append((time.perf_counter() - begun) * 1e6)
        end.record()
        end.synchronize()
        device.append(start.elapsed_time(end) * 1e3)
    return statistics.median(device[3:]), statistics.median(host[3:])


def main() -> None:
    """A line for each number of rows, cut and way."""
    device = torch.device("cuda")
    print(torch.cuda.get_device_name())
    for rows in (1, 16, 64):
        logits_LV = (torch.randn(rows, VOCABULARY, device=device) * 2).bfloat16().float()
        for keys in ({"top_p": 0.9}, {"top_k": 50}, {"min_p": 0.1}):
            cuts = truncation.truncation_of([Sampling(1, **keys)] * rows, VOCABULARY, Staging(device))
            assert cuts is not None
            for name, way in WAYS.items() if "top_p" in keys else (("", None),):
                if way is not None:
                    truncation.nucleus_on = lambda _, way=way: way
                on_device, on_host = microseconds(
                    lambda cuts=cuts, logits_LV=logits_LV: truncation.truncate(logits_LV, cuts)
                )
                print(f"{rows:3} rows  {keys}  {name:8} device {on_device:8.1f} µs  host {on_host:8.1f} µs", flush=True)


if __name__ == "__main__":
    main()
