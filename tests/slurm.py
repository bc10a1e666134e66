"""Condainer in the jobs of a real Slurm, which is set up on this machine and taken down again.

    apt-get install slurm-wlm munge
    python -m tests.slurm [--backend NAME] [--user] [--proctrack linuxproc|cgroup|pgid]

Root only. Four nodes share the machine, and so its mounts: they stand for many ranks on one node.
Everything is in a directory and a mount namespace of its own. What tracks a step's processes kills
them when it ends, a daemon that serves other steps too; which it finds depends on `--proctrack`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests import chaos, support, users

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support import Workshop

NODES = 4
TASKS = 64
PORT = 16817
LAUNCHER = support.REPOSITORY / "benchmarks/launcher.py"

CONFIG = """
ClusterName=trial
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool-%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd-%n.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd-%n.log
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=2
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={tasks}
PartitionName=trial Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

CGROUP = """
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
"""


@dataclass
class Cluster:
    """A Slurm that runs, and the project that its jobs use.

    Attributes:
        directory: holds everything that is Slurm's.
        place: the namespace it runs in.
        workshop: the project.
        user: whose jobs they are.
    """

    directory: Path
    place: users.Place
    workshop: Workshop
    user: int

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Start a program of Slurm, or a step, and go on."""
        return self.place.start(
            self.user,
            *argv,
            TMPDIR=str(self.workshop.temporary),
            SLURM_CONF=str(self.directory / "slurm.conf"),
            CHAOS=self.workshop.uuid,
        )

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a program of Slurm, or a step."""
        with self.start(*argv) as process:
            try:
                out, errors = process.communicate(timeout=support.PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                out, errors = process.communicate()
                errors += "it hung"
        return subprocess.CompletedProcess(argv, process.returncode, out, errors)

    def exec(self, *command: str) -> list[str]:
        """The words that run a command from the project."""
        condainer = (users.PYTHON, "-m", "condainer")
        return [*condainer, "-d", str(self.workshop.directory), "exec", "--", *command]

    def job(self, name: str, *lines: str) -> str:
        """Submit a batch job that has 16 processors, and give its number."""
        script = self.workshop.temporary / f"{name}.sh"
        script.write_text("#!/bin/sh\n" + "".join(f"{line}\n" for line in lines))
        output = self.workshop.temporary / f"{name}.out"
        done = self.run(
            "sbatch", "--parsable", "-n16", "-o", str(output), "-e", f"{output}.err", str(script)
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def output(self, name: str) -> str:
        """What a batch job has printed so far."""
        path = self.workshop.temporary / f"{name}.out"
        return path.read_text() if path.exists() else ""

    def wait(self, job: str) -> None:
        """Wait until a job has ended."""
        support.wait_for(
            lambda: not self.run("squeue", "-h", "-j", job).stdout.strip(), f"job {job} runs on"
        )

    def is_mounted(self) -> bool:
        """Whether the image is mounted in the cluster's namespace."""
        table = Path(f"/proc/{self.place.pid}/mountinfo").read_text().splitlines()
        return any(line.split(" ")[4] == str(self.workshop.prefix) for line in table)

    def servers(self) -> dict[str, list[int]]:
        """The daemons and keepers."""
        return chaos.servers_of(self.workshop)

    def leftovers(self) -> list[str]:
        """What there still is of a mount."""
        found = [str(path) for path in self.workshop.base.glob(".condainer-*/*")]
        found += [str(path) for path in self.workshop.base.iterdir()]
        if self.is_mounted():
            found.append("the mount")
        return found + [f"{kind} {pids}" for kind, pids in self.servers().items() if pids]

    def wait_until_clean(self) -> None:
        """Wait until the last one out was noticed, as far as somebody is left to notice it.

        Where Slurm has killed the keeper as well, what is left has to go with `umount`.
        """

        def calm() -> bool:
            return not self.leftovers() or not self.servers()["keeper"]

        support.wait_for(calm, "left over")
        time.sleep(1)
        if left := self.leftovers():
            say(f"    nobody is left to take away {', '.join(left)}")
            done = self.umount()
            assert done.returncode == 0, done
            assert not self.leftovers(), "left over after umount"

    def umount(self) -> subprocess.CompletedProcess[str]:
        """Unmount the image as a user does."""
        words = (users.PYTHON, "-m", "condainer", "-d", str(self.workshop.directory))
        return self.run(*words, "-q", "umount")


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# What is tried


def many_tasks_share_one_mount(cluster: Cluster) -> None:
    """All of a step's tasks begin at once, with nothing mounted."""
    cluster.workshop.configure(unmount_after=5)  # Slurm starts them within some seconds
    for nodes in (1, NODES):
        command = ("srun", f"-N{nodes}", f"-n{TASKS}", *cluster.exec("hard-hello"))
        watch = [sys.executable, str(LAUNCHER), "1", str(cluster.workshop.prefix)]
        done = cluster.run(*watch, shutil.which("srun") or "", *command[1:])
        *lines, found = done.stdout.splitlines()
        assert lines == [f"hello from {cluster.workshop.prefix}"] * TASKS, done
        assert json.loads(found)["statuses"] == {"0": 1}, done
        # Each node kills what its part of the step has started as soon as that part has ended.
        assert nodes > 1 or json.loads(found)["mounts"] == 1, found
        assert done.stderr == "", done.stderr
        cluster.wait_until_clean()
    cluster.workshop.configure()


def statuses_reach_srun(cluster: Cluster) -> None:
    """As they do without condainer."""
    for script in ("exit 0", "exit 7", "kill -9 $$", "kill -15 $$", "exit 255"):
        command = ("/bin/sh", "-c", script)
        direct = cluster.run("srun", "-n2", *command)
        inside = cluster.run("srun", "-n2", *cluster.exec(*command))
        assert inside.returncode == direct.returncode, (script, direct, inside)


def a_step_ends_with_its_command(cluster: Cluster) -> None:
    """Nothing holds its streams, or makes Slurm wait for the idle time."""
    cluster.workshop.configure(unmount_after=30)
    try:
        start = time.monotonic()
        done = cluster.run("srun", "-n1", *cluster.exec("/bin/echo", "done"))
        took = time.monotonic() - start
        assert (done.returncode, done.stdout) == (0, "done\n"), done
        assert took < 15, took
    finally:
        cluster.workshop.configure()
        support.wait_for(lambda: cluster.umount().returncode == 0, "still mounted")
    cluster.wait_until_clean()


def a_cancelled_job_leaves_nothing(cluster: Cluster) -> None:
    """`scancel` in the middle of a step, and of the mounting of it."""
    for pause in (0.0, 0.2, 0.5, 2.0):
        step = " ".join(["srun", "-n16", *quoted(cluster.exec("/bin/sleep", "100"))])
        job = cluster.job("cancelled", "echo began", step)
        support.wait_for(lambda: "began" in cluster.output("cancelled"), "no job")
        time.sleep(pause)
        if pause >= 2:
            assert cluster.is_mounted()
        cluster.run("scancel", job)
        cluster.wait(job)
        (cluster.workshop.temporary / "cancelled.out").unlink()
        cluster.wait_until_clean()


def a_signal_of_scancel_reaches_the_command(cluster: Cluster) -> None:
    """The command catches it."""
    script = "trap 'exit 9' USR1; echo ready; while :; do sleep 0.1; done"
    with cluster.start("srun", "-n1", *cluster.exec("/bin/sh", "-c", script)) as step:
        assert step.stdout is not None
        assert step.stdout.readline() == "ready\n"
        job = cluster.run("squeue", "-h", "-o", "%i").stdout.strip()
        cluster.run("scancel", "-s", "USR1", job)
        assert step.wait(support.PATIENCE) == 9


def steps_one_after_the_other(cluster: Cluster) -> None:
    """Of one job, at once and with a pause longer than the idle time."""
    step = " ".join(["srun", "-n4", *quoted(cluster.exec("hard-hello"))])
    job = cluster.job("steps", step, step, "sleep 2", step, "echo $?")
    cluster.wait(job)
    lines = cluster.output("steps").splitlines()
    assert lines == [f"hello from {cluster.workshop.prefix}"] * 12 + ["0"], lines
    cluster.wait_until_clean()


def a_batch_script_uses_it_itself(cluster: Cluster) -> None:
    """Without srun, together with a step."""
    own = " ".join(quoted(cluster.exec("hard-hello")))
    job = cluster.job("batch", own, f"srun -n2 {own} & {own}; wait", own)
    cluster.wait(job)
    lines = cluster.output("batch").splitlines()
    assert lines == [f"hello from {cluster.workshop.prefix}"] * 5, lines
    cluster.wait_until_clean()


def the_end_of_the_step_that_mounted(cluster: Cluster) -> None:
    """The others go on: what runs gives its own status, what begins is healed."""
    first = cluster.start("srun", "-n1", *cluster.exec("/bin/sleep", "100"))
    support.wait_for(cluster.is_mounted, "not mounted")
    # One that needs nothing more of the mount, and one that begins commands all the time.
    waiting = cluster.start("srun", "-n1", *cluster.exec("/bin/sh", "-c", "read x; exit 3"))
    own = " ".join(quoted(cluster.exec("/bin/true")))
    reads = " ".join(quoted(cluster.exec("hard-hello")))
    loop = f"while [ ! -e {cluster.workshop.temporary}/stop ]; do {own} || echo $?; done; {reads}"
    beginning = cluster.start("srun", "-n1", "/bin/sh", "-c", loop)
    time.sleep(1.5)
    before = cluster.servers()
    cluster.run("scancel", "-s", "KILL", newest_job_of(cluster, first))
    first.wait(support.PATIENCE)
    time.sleep(2)
    after = cluster.servers()
    (cluster.workshop.temporary / "stop").touch()
    out, errors = beginning.communicate(timeout=support.PATIENCE)
    (cluster.workshop.temporary / "stop").unlink()
    say(f"    servers before {before}, after {after}")
    assert out == f"hello from {cluster.workshop.prefix}\n", (out, errors)
    waiting.communicate(timeout=support.PATIENCE)
    assert waiting.returncode == 3, waiting.returncode
    for process in (first,):
        process.communicate()
    cluster.wait_until_clean()


def newest_job_of(cluster: Cluster, first: subprocess.Popen[str]) -> str:
    """The number of the oldest job, which is that of the first step."""
    assert first.poll() is None
    return min(cluster.run("squeue", "-h", "-o", "%i").stdout.split(), key=int)


def quoted(words: list[str]) -> list[str]:
    """Words for a line of shell."""
    return [f"'{word}'" for word in words]


CHECKS: tuple[Callable[[Cluster], None], ...] = (
    many_tasks_share_one_mount,
    statuses_reach_srun,
    a_step_ends_with_its_command,
    a_cancelled_job_leaves_nothing,
    a_signal_of_scancel_reaches_the_command,
    steps_one_after_the_other,
    a_batch_script_uses_it_itself,
    the_end_of_the_step_that_mounted,
)


# Setting it up


@contextlib.contextmanager
def running(directory: Path, place: users.Place, proctrack: str) -> Iterator[list[int]]:
    """Slurm's programs, which are ended afterwards."""
    host = os.uname().nodename
    text = CONFIG.format(
        host=host,
        port=PORT,
        first=PORT + 1,
        last=PORT + NODES,
        nodes=NODES,
        tasks=TASKS,
        directory=directory,
        proctrack=proctrack,
    )
    (directory / "slurm.conf").write_text(text)
    (directory / "cgroup.conf").write_text(CGROUP)
    for name in ("state", *(f"spool-n{number}" for number in range(1, NODES + 1))):
        (directory / name).mkdir()
    key = directory / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    files = [f"--{name}-file={directory}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    munged = ["munged", "--foreground", *files, f"--socket={directory}/munge.socket"]
    conf = ["-f", str(directory / "slurm.conf")]
    nodes = [["slurmd", "-D", "-N", f"n{number}", *conf] for number in range(1, NODES + 1)]
    started = []
    namespace = Path(f"/proc/{place.pid}/ns/mnt").readlink()
    variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    try:
        for argv in (munged, ["slurmctld", "-D", *conf], *nodes):
            log = (directory / f"{argv[0]}.output").open("a")
            command = ["nsenter", "-m", "-t", str(place.pid), "--", *argv]
            started.append(
                subprocess.Popen(command, env=variables, stdout=log, stderr=log, cwd="/")
            )
            time.sleep(0.5)
        yield [process.pid for process in started]
    finally:
        for process in reversed(started):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        end_all(namespace, place.pid)


def end_all(namespace: Path, holder: int) -> None:
    """End what Slurm has started and left behind, and remove its control groups."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != holder:
            with contextlib.suppress(OSError):
                if (entry / "ns/mnt").readlink() == namespace:
                    os.kill(int(entry.name), signal.SIGKILL)
    time.sleep(0.5)
    groups = sorted(Path("/sys/fs/cgroup").glob("*/slurm*/**/"), reverse=True)
    for group in groups:
        with contextlib.suppress(OSError):
            group.rmdir()


def main() -> int:
    """Try everything, and give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm")
    parser.add_argument("--backend", choices=chaos.BACKENDS, default=chaos.BACKENDS[0])
    parser.add_argument("--user", action="store_true", help="as an ordinary user")
    parser.add_argument("--proctrack", choices=("linuxproc", "cgroup", "pgid"), default="linuxproc")
    arguments = parser.parse_args()
    if os.getuid() != 0:
        parser.error("only root can set up a cluster")
    if missing := [name for name in ("srun", "slurmctld", "munged") if not shutil.which(name)]:
        parser.error(f"there is no {', '.join(missing)}: install slurm-wlm and munge")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that it is taken down
    user = users.ANN if arguments.user else 0
    hidden = chaos.BACKENDS[: chaos.BACKENDS.index(arguments.backend)]
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cnds-")))
        directory.chmod(0o755)
        (directory / "project").mkdir()
        workshop = chaos.make(directory / "project")
        stack.callback(support.clear, workshop)
        chaos.give(workshop, user)
        place = stack.enter_context(users.namespace(hidden))
        stack.enter_context(running(directory, place, arguments.proctrack))
        return try_all(Cluster(directory, place, workshop, user))


def try_all(cluster: Cluster) -> int:
    """Try everything, and say what came of it."""

    def idle() -> bool:
        return cluster.run("sinfo", "-h", "-t", "idle", "-o", "%D").stdout.strip() == str(NODES)

    support.wait_for(idle, "the nodes do not come up")
    failed = 0
    for check in CHECKS:
        support.wait_for(idle, "the nodes are not idle again")
        try:
            check(cluster)
        except (AssertionError, subprocess.TimeoutExpired, ValueError) as error:
            failed += 1
            say(f"FAILED {check.__name__}: {error}\n    {cluster.leftovers()}")
            cluster.run("scancel", "-s", "KILL", f"--user={cluster.user}")
            cluster.run(*cluster.exec("/bin/true"))  # whose keeper takes away whatever there is
            with contextlib.suppress(AssertionError):
                cluster.wait_until_clean()
        else:
            say(f"ok {check.__name__}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
