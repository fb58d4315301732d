"""Every plan against plan=single on the same checkpoint: shares, speed, and greedy tokens. Needs up to 4 GPUs.

    python tests/gpu/compare_plans.py CHECKPOINT OUT GPUS [WORD …]

Runs `plan_probe.py` under torchrun at 1, 2 and 4 ranks (up to GPUS), with the WORDs (`model.dtype=float32`) added to
every plan, and prints one table. Ends with status 1 if a rank
holds more than 3 % beside its planned share, or if greedy tokens part from plan=single at anything but a near-tie: the
two tokens' logits, in plan=single, no further apart than twice the most that the two plans' logits differ there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

PLANS = {
    1: ["plan=single"],
    2: ["plan=tp", "plan=ep", "plan=tp_ep"],
    4: ["plan=tp", "plan=ep", "plan=tp_ep", "plan=dp_tp"],
}
SHARE = 0.03


def run_probe(checkpoint: str, out: str, ranks: int, words: list[str]) -> None:
    probe = Path(__file__).with_name("plan_probe.py")
    plans = [",".join([plan, *words]) for plan in PLANS[ranks]]
    command = ["torchrun", "--standalone", f"--nproc_per_node={ranks}", str(probe), checkpoint, out, *plans]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "4"})


def part_from(reference: dict, other: dict) -> tuple[str, bool]:
    """Where greedy tokens part, in words, and whether that is explained."""
    pairs = enumerate(zip(reference["tokens"], other["tokens"], strict=True))
    place = next((number for number, (mine, theirs) in pairs if mine != theirs), None)
    if place is None:
        return f"all {len(reference['tokens'])} equal", True
    mine, theirs = reference["logits"][place], other["logits"][place]
    gap = (mine[reference["tokens"][place]] - mine[other["tokens"][place]]).item()
    noise = (mine - theirs).abs().max().item()
    return f"{place} equal, then a gap of {gap:.3f} (logits differ by up to {noise:.3f})", gap <= 2 * noise


def main(checkpoint: str, out: str, gpus: int, words: list[str]) -> int:
    for ranks in PLANS:
        if ranks <= gpus and not list(Path(out).glob(f"*-{ranks}.pt")):
            run_probe(checkpoint, out, ranks, words)
    results = [torch.load(file, weights_only=False) for file in sorted(Path(out).glob("*.pt"))]
    results.sort(key=lambda one: (one["world_size"], one["words"]))
    reference = next(one for one in results if one["world_size"] == 1)
    print("| plan | ranks | kernels | held GB by rank | planned GB | load s | first token s | tokens/s | greedy |")
    print("|---|---|---|---|---|---|---|---|---|")
    good = True
    for one in results:
        text, explained = part_from(reference, one)
        off = max(abs(held / planned - 1) for held, planned in zip(one["held"], one["planned"], strict=True))
        good = good and explained and off <= SHARE
        held = " ".join(f"{size / 1e9:.2f}" for size in one["held"])
        planned = " ".join(f"{size / 1e9:.2f}" for size in one["planned"])
        kernels = "/".join(name.rpartition("/")[2] for name in one["kernels"])
        print(
            f"| {one['words']} (dp {one['dp']} × tp {one['tp']}) | {one['world_size']} | {kernels} | {held} "
            f"| {planned} | {one['load_s']:.1f} | {one['first_s']:.2f} | {one['tokens_per_s']:.1f} | {text} |"
        )
    print("every share within 3 %, every parting a near-tie" if good else "NOT as planned")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
