"""A real SLURM on this machine, for tests: munged, slurmctld and two slurmd that are two nodes, as root, no systemd.

Both nodes have this machine's address and share its ports; /etc/hosts knows their names while the cluster runs.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from ports import free_port

NODES = ("gptoss-ci1", "gptoss-ci2")
GPUS_PER_NODE = 2
_HOSTS = Path("/etc/hosts")
_MARK = "# gptoss-dist test cluster"
_CONF = """
ClusterName=gptoss
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
FirstJobId={first_job}
GresTypes=gpu
"""


def is_installed() -> bool:
    """Whether SLURM's daemons and munge are on this machine."""
    return all(shutil.which(program) for program in ("munged", "slurmctld", "slurmd", "sbatch"))


class Cluster:
    """Starts the daemons; `close` ends them and takes the names out of /etc/hosts."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="gptoss-slurm-", dir="/tmp"))  # short: sockets' paths are limited
        self._folder.chmod(0o755)
        self._mark = f"{_MARK} {self._folder.name}"  # other clusters of this machine keep their names
        self._environ = {**_without_slurm(os.environ), "SLURM_CONF": str(self._folder / "slurm.conf")}
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def run(self, *argv: str, folder: Path, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """A SLURM command, run in `folder`."""
        return subprocess.run(
            argv, cwd=folder, env=self._environ, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def submit(self, *argv: str, folder: Path, environ: Mapping[str, str] | None = None) -> str:
        """`sbatch ARGV` in `folder`; the job's id."""
        variables = {**self._environ, **(environ or {})}
        command = ["sbatch", "--parsable", *argv]
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def finish(self, job: str, timeout_s: float = 240) -> tuple[str, str]:
        """Wait for a job's end: its state and its exit code as SLURM writes it, `FAILED`, `1:0`."""
        deadline = time.monotonic() + timeout_s
        while True:
            fields = self._job(job)
            if fields["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "SIGNALING", "COMPLETING"):
                return fields["JobState"], fields["ExitCode"]
            assert time.monotonic() < deadline, f"job {job} is still {fields['JobState']}\n{self.logs()}"
            time.sleep(0.2)

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(f"{path.name}\n{path.read_text()[-3000:]}" for path in sorted(self._folder.glob("*.log")))

    def close(self) -> None:
        """End jobs, daemons and names."""
        self._cancel_jobs()
        for pid_file in sorted(self._folder.glob("*.pid")):  # munged last: the others say goodbye through it
            if pid_file.name != "munged.pid":
                _end(pid_file)
        _end(self._folder / "munged.pid")
        lines = _HOSTS.read_text().splitlines(keepends=True)
        _HOSTS.write_text("".join(line for line in lines if self._mark not in line))
        shutil.rmtree(self._folder, ignore_errors=True)

    def _cancel_jobs(self) -> None:
        """A job's processes outlive their slurmd, so they go first."""
        if not _is_running_from(self._folder / "slurmctld.pid"):
            return
        self.run("scancel", "--full", "--user=root", folder=self._folder)
        deadline = time.monotonic() + 15
        while self.run("squeue", "--noheader", folder=self._folder).stdout.strip() and time.monotonic() < deadline:
            time.sleep(0.2)

    def _start(self) -> None:
        address = socket.gethostbyname(socket.gethostname())
        with _HOSTS.open("a") as hosts:
            hosts.writelines(f"{address} {node} {self._mark}\n" for node in NODES)
        self._configure(address)
        self._start_munged()
        self._call("slurmctld")
        for node in NODES:
            self._call("slurmd", "-N", node)
        deadline = time.monotonic() + 60
        while self._idle_nodes() != len(NODES):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)

    def _configure(self, address: str) -> None:
        folder = self._folder
        (folder / "state").mkdir()
        for number in range(GPUS_PER_NODE):  # SLURM wants a character device whose name ends in a digit
            (folder / f"gpu{number}").symlink_to("/dev/null")
        (folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu File={folder}/gpu[0-{GPUS_PER_NODE - 1}]\n")
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # not used; else slurmd looks for one
        port, *node_ports = (free_port() for _ in range(1 + len(NODES)))
        host = socket.gethostname()
        first_job = 1 + port  # a job's ports are made of its number, and another cluster may be on this machine
        lines = [_CONF.format(host=host, address=address, port=port, folder=folder, first_job=first_job)]
        for node, node_port in zip(NODES, node_ports, strict=True):
            (folder / f"spool-{node}").mkdir()
            lines.append(
                f"NodeName={node} NodeHostname={host} NodeAddr={address} Port={node_port} "
                f"CPUs=4 RealMemory=16000 Gres=gpu:{GPUS_PER_NODE}\n"
            )
        lines.append("PartitionName=main Nodes=ALL Default=YES DefaultTime=5\n")
        (folder / "slurm.conf").write_text("".join(lines))

    def _start_munged(self) -> None:
        key = self._folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(128))
        options = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid"}
        options |= {"log-file": "munged.log", "seed-file": "munge.seed"}
        self._call("munged", *(f"--{name}={self._folder / value}" for name, value in options.items()))

    def _call(self, *argv: str) -> None:
        done = subprocess.run(argv, env=self._environ, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        assert done.returncode == 0, f"{argv}: {done.stderr.decode()}\n{self.logs()}"

    def _idle_nodes(self) -> int:
        done = self.run("sinfo", "--noheader", "--Node", "--states=idle", folder=self._folder)
        return len(done.stdout.splitlines())

    def _job(self, job: str) -> dict[str, str]:
        done = self.run("scontrol", "--oneliner", "show", "job", job, folder=self._folder)
        assert done.returncode == 0, done.stderr
        return dict(field.split("=", 1) for field in done.stdout.split() if "=" in field)


def _without_slurm(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if not name.startswith(("SLURM", "SBATCH", "SRUN"))}


def _end(pid_file: Path) -> None:
    """End the daemon of a pid file, by SIGTERM and, ten seconds later, by SIGKILL."""
    if not _is_running_from(pid_file):
        return
    process = Path("/proc") / pid_file.read_text().strip()
    for signum in (signal.SIGTERM, signal.SIGKILL):
        if not _is_running(process):
            return
        os.kill(int(process.name), signum)
        deadline = time.monotonic() + 10
        while _is_running(process) and time.monotonic() < deadline:
            time.sleep(0.05)


def _is_running(process: Path) -> bool:
    """Whether a process is there and no zombie; in a container nobody may collect it."""
    try:
        return "\nState:\tZ" not in (process / "status").read_text()
    except OSError:
        return False


def _is_running_from(pid_file: Path) -> bool:
    """Whether the daemon that wrote its number there is running."""
    number = pid_file.read_text().strip() if pid_file.exists() else ""
    return bool(number) and _is_running(Path("/proc") / number)
