"""Job files: their syntax, and that they start as many ranks as the build has."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

import specc
from specc.compiler.build import build_spec
from specc.runtime.cli import main
from specc.runtime.jobs import KINDS, Job, k8s, skypilot, slurm

TINY = Path(__file__).parent.parent / "examples" / "tiny.yaml"
JOB = Job("a-run", "/data/my builds/a", 4, 8, "H100")


def test_a_slurm_script_is_good_shell_and_quotes_the_build() -> None:
    text = slurm(JOB)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=20)
    assert "#SBATCH --nodes=4" in text
    assert "#SBATCH --gpus-per-node=8" in text
    assert "#SBATCH --time=1-00:00:00" in text
    assert "'/data/my builds/a'" in text


@pytest.mark.parametrize("nodes", [1, 4096])
def test_a_slurm_script_finds_its_first_machine_of_any_number(nodes: int, tmp_path: Path) -> None:
    """A writer whose reader goes away after a line would end the job."""
    for name, does in (("scontrol", f"seq -f node-%05g {nodes}"), ("srun", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_NODELIST": "x", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash"], input=slurm(JOB), text=True, env=env, capture_output=True, check=True, timeout=20)
    assert "--rdzv-id=7 --rdzv-endpoint=node-00001:29500 " in done.stdout


def test_a_slurm_task_has_all_of_its_machine() -> None:
    text = slurm(JOB)
    assert "#SBATCH --exclusive\n#SBATCH --mem=0\n" in text
    assert "srun --kill-on-bad-exit=1 --cpu-bind=none torchrun " in text


def test_a_slurm_script_marks_where_the_environment_is_activated() -> None:
    lines = slurm(JOB).splitlines()
    (at,) = (i for i, line in enumerate(lines) if line.startswith("# Activate the environment here"))
    assert at < lines.index("set -euo pipefail"), "scripts that activate read variables that are not set"


def test_a_job_of_kubernetes_has_a_service_by_which_its_machines_meet() -> None:
    service, job = yaml.safe_load_all(k8s(JOB))
    assert service["spec"]["clusterIP"] == "None"
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 4
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert pod["containers"][0]["resources"]["limits"] == {"nvidia.com/gpu": 8}
    shell = pod["containers"][0]["command"][-1]
    subprocess.run(["bash", "-n", "-c", shell], check=True, timeout=20)
    assert "--rdzv-endpoint=a-run-0.a-run:29500" in shell


def test_a_job_of_kubernetes_outlives_evictions_and_some_failures_of_all_machines() -> None:
    service, job = yaml.safe_load_all(k8s(JOB))
    assert service["spec"]["publishNotReadyAddresses"], "ranks meet before they are ready"
    assert job["spec"]["backoffLimit"] == 3 * JOB.nodes
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never", "what that policy asks for"


def test_a_task_of_skypilot_names_its_accelerators() -> None:
    task = yaml.safe_load(skypilot(JOB))
    assert task["num_nodes"] == 4
    assert task["resources"] == {"accelerators": "H100:8"}
    first = "".join(task["run"].splitlines(keepends=True)[:1]) + 'echo "$first"'
    env = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"}
    done = subprocess.run(["bash", "-c", first], text=True, env=env, capture_output=True, check=True, timeout=20)
    assert done.stdout == "10.0.0.1\n"
    subprocess.run(["bash", "-n"], input=task["run"], text=True, check=True, timeout=20)


def test_on_cpus_no_file_asks_for_gpus() -> None:
    texts = [make(Job("a", "b", 1, 2)) for make in KINDS.values()]
    assert not [text for text in texts if "gpu" in text.lower() or "accelerators" in text]


def test_a_job_file_is_of_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "build", "--slurm", "--k8s"]) == 2
    assert "a job file is of one kind, not of --slurm and --k8s" in capsys.readouterr().err


def test_a_build_fills_its_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["model.dims.L=2", "plan.mesh.dp=4", "stages.pretrain.batch.sequences=16"]
    build_spec(specc.load(TINY, overrides), tmp_path / "my_build")
    assert main(["launch", str(tmp_path / "my_build"), "--skypilot", "--per-node", "2"]) == 0
    task = yaml.safe_load(capsys.readouterr().out)
    assert (task["name"], task["num_nodes"]) == ("tiny", 2)
    assert "--nproc-per-node=2" in task["run"]
    assert main(["launch", str(tmp_path / "my_build"), "--per-node", "3"]) == 1
    assert "do not fill machines of 3" in capsys.readouterr().err
