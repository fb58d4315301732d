"""A run as an sbatch script: a pure function of its configuration. No torch, nothing is read or written here.

    #SBATCH lines ─► set-up lines ─► staging of the weights, once a node ─► one srun that starts the ranks

How the ranks start: `torchrun` runs one torchrun a node, which meet at the first node, at a port of the job's own;
`srun` runs one task a rank, which read SLURM's variables; `accelerate` runs one `accelerate launch` a node.

A job that is requeued is told to finish `signal_s` seconds before its time limit: SLURM sends USR1 to the script alone,
which sends TERM to the ranks, waits for them and puts the job back into the queue.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence

from gptoss_dist.errors import ConfigError
from gptoss_dist.launcher.command import MODULE
from gptoss_dist.launcher.env import FIRST_PORT, PORTS, PORTS_PER_JOB
from gptoss_dist.schema.slurm import SlurmConf, SlurmLauncher

_STAGED = '"$staged"'
_RENDEZVOUS = """--nnodes="$SLURM_JOB_NUM_NODES" --rdzv-backend=c10d \\
  --rdzv-endpoint="$first_node:$port" --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}\""""
"""A requeued job keeps its id: the restart count keeps it from meeting what is left of its former self."""
_ACCELERATE = ("--mixed_precision=no", "--dynamo_backend=no")
_STAGE = """set -euo pipefail
mkdir -p {folder}
exec 9>{target}.lock
flock 9
files() {{ (cd "$1" && find -L . -type f ! -name .complete -exec stat -L --format="%n %s %Y" {{}} + | sort); }}
if [ ! -e {target}/.complete ] || [ "$(files {source})" != "$(files {target})" ]; then
  echo "$(hostname): copying {source} to {target}"
  rm -rf {target}
  cp -rL --preserve=timestamps {source} {target}
  if ! diff -rq {source} {target}; then
    echo "$(hostname): {target} is not {source} after copying: look at both disks, then submit again" >&2
    exit 1
  fi
  touch {target}/.complete
fi"""
"""Copied once, each byte compared; from then on, names, sizes and times tell whether the source is another."""
_FINISH = """job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # an array's id means all its tasks
job=${job:-$SLURM_JOB_ID}
time_is_up=0
finish() {
  time_is_up=1
  echo "the time is nearly up: the ranks stop, then the job goes back into the queue" >&2
  scancel --signal=TERM "$job"
}
trap finish USR1"""
_WAIT = """step=$!
status=0
wait "$step" || status=$?
while kill -0 "$step" 2>/dev/null; do # the trap ended the wait, not the step
  status=0
  wait "$step" || status=$?
done
if ((time_is_up && status)); then # without status it was over in time
  scontrol requeue "$job"
fi
exit "$status\""""


def render(conf: SlurmConf, words: Sequence[str], world_size: int, model_path: str, made_by: str) -> str:
    """The script that runs `gptoss WORDS` on `world_size` ranks.

    `model_path`: what is staged, if staging is asked for. `made_by`: the command, for its first comment. Raises
    ConfigError where nodes and ranks do not go together.
    """
    ranks = ranks_per_node(conf, world_size)
    sections = [
        _head(conf, ranks, made_by),
        "set -euo pipefail",
        _setup(conf, ranks),
        _staging(conf, model_path),
        _launch(conf, words, ranks),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def ranks_per_node(conf: SlurmConf, world_size: int) -> int:
    """How many ranks each node runs. Raises ConfigError if the nodes cannot share the ranks evenly."""
    ranks = conf.ranks_per_node or conf.gpus_per_node or -(-world_size // conf.nodes)
    if ranks * conf.nodes != world_size:
        raise ConfigError(
            f"slurm.nodes={conf.nodes} with {ranks} ranks each are {ranks * conf.nodes} ranks, and the plan needs "
            f"{world_size}. Set slurm.nodes, slurm.gpus_per_node (or slurm.ranks_per_node), or the plan's dp and tp."
        )
    return ranks


def _head(conf: SlurmConf, ranks: int, made_by: str) -> str:
    identity = "%A_%a" if conf.array else "%j"
    per_node = ranks if conf.launcher is SlurmLauncher.srun else 1
    gpus = None if conf.ranks_per_node else conf.gpus_per_node or ranks
    options: list[tuple[str, str | int | None]] = [
        ("job-name", conf.job_name),
        ("nodes", conf.nodes),
        ("ntasks-per-node", per_node),
        ("gpus-per-node", gpus),
        ("cpus-per-task", conf.cpus_per_node // per_node if conf.cpus_per_node else None),
        ("mem", conf.memory or (None if conf.cpus_per_node else 0)),
        ("time", conf.time),
        ("partition", conf.partition),
        ("account", conf.account),
        ("qos", conf.qos),
        ("constraint", conf.constraint),
        ("array", _array(conf)),
        ("output", f"{conf.logs}/{conf.job_name}-{identity}.log"),
        ("open-mode", "append"),
        ("signal", f"B:USR1@{conf.signal_s}" if conf.requeue else None),
    ]
    before = f"# First: mkdir -p {shlex.quote(conf.logs)}   (without that folder SLURM fails the job, and says nothing)"
    lines = ["#!/bin/bash", f"# {made_by}", before]
    lines += [f"#SBATCH --{name}={_option(value)}" for name, value in options if value is not None]
    lines += [] if conf.cpus_per_node else ["#SBATCH --exclusive"]
    lines += ["#SBATCH --requeue" if conf.requeue else "#SBATCH --no-requeue"]
    return "\n".join([*lines, *(f"#SBATCH {line}" for line in conf.options)])


def _array(conf: SlurmConf) -> str | None:
    if not conf.array:
        return None
    return f"0-{conf.array - 1}" + (f"%{conf.at_once}" if conf.at_once else "")


def _option(value: str | int) -> str:
    return shlex.quote(str(value)) if isinstance(value, str) and " " in value else str(value)


def _setup(conf: SlurmConf, ranks: int) -> str:
    lines = [f"module load {shlex.quote(module)}" for module in conf.modules]
    lines += list(conf.setup)
    lines += [
        f"ranks={ranks}",
        "cores=${SLURM_CPUS_ON_NODE:-1}",
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cores > ranks ? cores / ranks : 1))}",
    ]
    return "\n".join(lines)


def _staging(conf: SlurmConf, model_path: str) -> str:
    """Copy the weights to each node once: whoever comes first locks, copies and compares."""
    if conf.stage is None:
        return ""
    path = model_path.rstrip("/")
    folder = f"{conf.stage.rstrip('/')}/{hashlib.sha256(path.encode()).hexdigest()[:8]}"  # others may have its name too
    target = shlex.quote(f"{folder}/{path.rpartition('/')[2]}")
    copy = _STAGE.format(source=shlex.quote(path), folder=shlex.quote(folder), target=target)
    step = 'srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1'
    return f"staged={target}\n{step} bash -c {shlex.quote(copy)}"


def _launch(conf: SlurmConf, words: Sequence[str], ranks: int) -> str:
    step = f"{_meeting(conf)}{_srun(conf, ranks)} \\\n  {_starter(conf, ranks)} {_words(conf, words)}"
    return f"{_FINISH}\n\n{step} &\n{_WAIT}" if conf.requeue else step


def _srun(conf: SlurmConf, ranks: int) -> str:
    per_node = ranks if conf.launcher is SlurmLauncher.srun else 1
    argv = ["srun", f"--ntasks={conf.nodes * per_node}", f"--ntasks-per-node={per_node}"]
    argv.append("--cpus-per-task=" + ("$cores" if per_node == 1 else "$((cores > ranks ? cores / ranks : 1))"))
    if conf.ranks_per_node is None:
        argv.append(f"--gpus-per-node={conf.gpus_per_node or ranks}")
    argv += ["--kill-on-bad-exit=1", "--wait=60"]
    if conf.container is not None:
        argv.append(f"--container-image={shlex.quote(conf.container)}")
    if conf.log_per_rank and conf.launcher is SlurmLauncher.srun:
        argv += [shlex.quote(f"--output={conf.logs}/{conf.job_name}-%j-rank%t.log"), "--open-mode=append"]
    return " ".join(argv)


def _meeting(conf: SlurmConf) -> str:
    """Where the nodes meet; one node needs no place. What accelerate's own shell reads is exported."""
    in_a_shell = conf.launcher is SlurmLauncher.accelerate
    if conf.nodes == 1 or conf.launcher is SlurmLauncher.srun:
        return "export ranks\n\n" if in_a_shell else ""
    last = PORTS_PER_JOB - 1
    exported = "export ranks first_node port\n" if in_a_shell else ""
    return f"""first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$(({FIRST_PORT} + (SLURM_JOB_ID * {PORTS_PER_JOB} + {last}) % {PORTS}))
{exported}
"""


def _starter(conf: SlurmConf, ranks: int) -> str:
    """What srun runs, up to the words."""
    match conf.launcher:
        case SlurmLauncher.srun:
            return f"python -m {MODULE}"
        case SlurmLauncher.accelerate:
            return _accelerate(conf, ranks)
        case _:
            where = "--standalone" if conf.nodes == 1 else _RENDEZVOUS
            return f'torchrun {where} --nproc-per-node="$ranks"{_torchrun_logs(conf)} \\\n  -m {MODULE}'


def _torchrun_logs(conf: SlurmConf) -> str:
    """A file a rank, and everything in the job's own log too."""
    return f" \\\n  --log-dir={_rank_logs(conf)} --tee=3" if conf.log_per_rank else ""


def _rank_logs(conf: SlurmConf) -> str:
    return f'{shlex.quote(f"{conf.logs}/{conf.job_name}-")}"$SLURM_JOB_ID-ranks"'


def _accelerate(conf: SlurmConf, ranks: int) -> str:
    """Each node's number is known inside the step alone, so a shell there puts it in."""
    flags = [f"--num_machines={conf.nodes}", f'--num_processes="$((ranks * {conf.nodes}))"']
    flags += ["--multi_gpu"] if ranks * conf.nodes > 1 else []  # accelerate refuses it for one process
    flags += _ACCELERATE
    if conf.nodes > 1:
        flags += ['--main_process_ip="$first_node"', '--main_process_port="$port"', '--machine_rank="$SLURM_NODEID"']
    if conf.log_per_rank:
        flags += [f"--log_dir={_rank_logs(conf)}", "--tee=3"]
    inside = f'exec accelerate launch {" ".join(flags)} -m {MODULE} "$@"'
    return f"bash -c {shlex.quote(inside)} gptoss"


def _words(conf: SlurmConf, words: Sequence[str]) -> str:
    kept = [word for word in words if conf.stage is None or not word.startswith("model.path=")]
    staged = [f"model.path={_STAGED}"] if conf.stage is not None else []
    return " ".join([*(shlex.quote(word) for word in kept), *staged])
