"""Job files for clusters, around torchrun: Slurm, Kubernetes and SkyPilot. Nothing is submitted."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

PORT = 29500
ACTIVATE = "# Activate the environment here, on a disk that all machines see, such as: source /shared/venv/bin/activate"
RESTARTS = 3  # of all ranks, by torchrun; Kubernetes counts one that fails on each machine
SAVING = 120  # seconds between the signal and the end of a Slurm job: time for a checkpoint
NAME = re.compile(r"[a-z]([-a-z0-9]{0,50}[a-z0-9])?")  # what Kubernetes takes as a name of a job and of its service
FIRST = "${{{}%%$'\\n'*}}"  # of lines in a variable; a pipe into head would kill the writer where there are many


@dataclass(frozen=True)
class Job:
    """A run of a build on `nodes` machines with `per_node` ranks each; `accelerator` is empty on CPUs.

    The build and its runs lie on a disk that all machines see, at the same path."""

    name: str
    build: str
    nodes: int
    per_node: int
    accelerator: str = ""
    hours: int = 24
    image: str = "specc:latest"
    claim: str = "specc"

    def torchrun(self, rendezvous: str, run_id: str) -> list[str]:
        """The command of each machine; both arguments are put in as they are."""
        return [
            "torchrun", f"--nnodes={self.nodes}", f"--nproc-per-node={self.per_node}", "--rdzv-backend=c10d",
            f"--rdzv-id={run_id}", f"--rdzv-endpoint={rendezvous}:{PORT}", f"--max-restarts={RESTARTS}",
            "-m", "specc", "run", shlex.quote(self.build),
        ]  # fmt: skip


def slurm(job: Job) -> str:
    """A batch script: `sbatch FILE`. A signal before the end lets ranks save, and the job is queued again.

    It asks for whole machines: one task by itself would be given one core."""
    days, hours = divmod(job.hours, 24)
    options = [f"job-name={job.name}", f"nodes={job.nodes}", "ntasks-per-node=1", "exclusive", "mem=0",
               f"time={days}-{hours:02}:00:00", f"signal=TERM@{SAVING}", "requeue", "open-mode=append",
               f"output={job.name}-%j.log"]  # fmt: skip
    if job.accelerator:
        options.insert(3, f"gpus-per-node={job.per_node}")
    command = " ".join(job.torchrun('"$first"', '"$SLURM_JOB_ID"'))
    lines = [
        "#!/bin/bash", *(f"#SBATCH --{option}" for option in options), "", ACTIVATE, "set -euo pipefail",
        'nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")', f"first={FIRST.format('nodes')}",
        "export OMP_NUM_THREADS=1",
        f"srun --kill-on-bad-exit=1 --cpu-bind=none {command}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def k8s(job: Job) -> str:
    """A headless service and an indexed Job: `kubectl apply -f FILE`. The build's disk is the claim `job.claim`.

    A pod that is evicted is made anew and counts as no failure."""
    command = " ".join(job.torchrun(f"{job.name}-0.{job.name}", job.name))
    limits = {"nvidia.com/gpu": job.per_node} if job.accelerator else {"cpu": job.per_node}
    container: dict[str, Any] = {
        "name": "ranks", "image": job.image, "command": ["/bin/bash", "-c", f"exec {command}"],
        "env": [{"name": "OMP_NUM_THREADS", "value": "1"}], "resources": {"limits": limits},
        "volumeMounts": [{"name": "builds", "mountPath": "/builds"}, {"name": "memory", "mountPath": "/dev/shm"}],
        "workingDir": "/builds",
    }  # fmt: skip
    volumes = [
        {"name": "builds", "persistentVolumeClaim": {"claimName": job.claim}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
    ]
    pod = {"subdomain": job.name, "restartPolicy": "Never", "terminationGracePeriodSeconds": SAVING,
           "containers": [container], "volumes": volumes}  # fmt: skip
    meets = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"job-name": job.name}}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": job.name}, "spec": meets}
    evicted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    spec = {"completions": job.nodes, "parallelism": job.nodes, "completionMode": "Indexed",
            "backoffLimit": RESTARTS * job.nodes, "podFailurePolicy": {"rules": [evicted]},
            "template": {"spec": pod}}  # fmt: skip
    jobs = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job.name}, "spec": spec}
    return yaml.safe_dump_all([service, jobs], sort_keys=False)


def skypilot(job: Job) -> str:
    """A task: `sky jobs launch FILE`."""
    resources: dict[str, Any] = {"accelerators": f"{job.accelerator}:{job.per_node}"} if job.accelerator else {}
    command = " ".join(job.torchrun('"$first"', job.name))
    run = f"first={FIRST.format('SKYPILOT_NODE_IPS')}\nexport OMP_NUM_THREADS=1\n{command}\n"
    task: dict[str, Any] = {"name": job.name, "num_nodes": job.nodes, "resources": resources, "run": run}
    return yaml.safe_dump({k: v for k, v in task.items() if v != {}}, sort_keys=False)


KINDS: Mapping[str, Callable[[Job], str]] = {"slurm": slurm, "k8s": k8s, "skypilot": skypilot}
