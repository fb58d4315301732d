#!/usr/bin/env bash
# What only GPUs can tell, in one go: tests, comparisons, timings. From the repository's root:
#
#   bash tests/gpu/measure.sh OUT [GPUS]
#
# Every part has a time limit and a log of its own in OUT; one that fails does not stop the others, and the last lines
# say how each ended. GPUS (default: all) decides how many ranks the parts with several take.
set -uo pipefail
out=${1:?a folder for the logs}
gpus=${2:-$(python3 -c 'import torch; print(torch.cuda.device_count())')}
mkdir -p "$out"
export PYTHONPATH=$PWD:${PYTHONPATH:-} PYTHONUNBUFFERED=1
summary=()

part() { # NAME SECONDS COMMAND…
  local name=$1 limit=$2 started=$SECONDS status=0
  shift 2
  timeout "$limit" "$@" >"$out/$name.log" 2>&1 || status=$?
  summary+=("$(printf '%-24s status %-3s %4s s  %s' "$name" "$status" "$((SECONDS - started))" "$(tail -n 1 "$out/$name.log" | cut -c1-200)")")
  echo "${summary[-1]}"
}

part kernels 300 python3 -m pytest -q -p no:cacheprovider tests/gpu
part engine 240 python3 tests/gpu/compare_engine.py 1 single
part profile 240 python3 tests/gpu/profile_step.py --batches 1 8 64
part experts 240 python3 tests/gpu/time_experts.py --tokens 1 8 64 2048
part attention 300 python3 tests/gpu/time_attention.py --kv-heads 8
part small 120 python3 tests/gpu/time_small.py
if ((gpus > 1)); then
  part engine-ranks 300 python3 tests/gpu/compare_engine.py "$gpus" tp ep tp_ep
  part small-ranks 120 torchrun --standalone --nproc-per-node="$gpus" tests/gpu/time_small.py
fi
part synth 180 python3 -m gptoss_dist synth --size 120b --out /dev/shm/gptoss-120b
words=(model=gpt_oss_120b model.path=/dev/shm/gptoss-120b backend=engine kernels=triton)
part bench-1 420 python3 -m gptoss_dist bench "${words[@]}" plan=single job.suite=table --json
if ((gpus > 1)); then
  part bench-ranks 420 python3 -m gptoss_dist bench "${words[@]}" plan=tp plan.tp="$gpus" job.suite=table --json
fi
printf '%s\n' "" "${summary[@]}"
