"""A SLURM cluster of one node, in a folder and on ports of its own, with a database of its jobs."""

import os
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress

PROGRAMS = ["munged", "slurmctld", "slurmd", "slurmdbd", "mariadbd", "mariadb-install-db"]
PROGRAMS += ["sbatch", "srun", "sacct", "scontrol"]
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])

SETTINGS = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=2
JobRequeue=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[2]}
AccountingStoragePass={folder}/munge.socket
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=1,batch_sched_delay=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
DATABASE = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost={host}
DbdAddr=127.0.0.1
DbdPort={ports[2]}
SlurmUser={user}
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={ports[3]}
StorageUser=root
StorageLoc=accounting
"""


def missing():
    """Return the programs that a cluster needs and this machine lacks."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


@contextmanager
def cluster(folder):
    """Start a cluster, set the environment of its users, and end it all, by the process."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(4)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    values = {
        "folder": folder,
        "host": socket.gethostname().partition(".")[0],
        "user": user,
        "ports": ports,
        "cpus": os.cpu_count(),
    }
    for name, text in (("slurm.conf", SETTINGS), ("slurmdbd.conf", DATABASE)):
        (folder / name).write_text(text.format(**values))
        (folder / name).chmod(0o600)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    folder.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": PATH,
        "SLURM_CONF": str(folder / "slurm.conf"),
    }
    call = ["mariadb-install-db", f"--user={user}", f"--datadir={folder}/data"]
    call += ["--auth-root-authentication-method=normal", "--skip-test-db"]
    subprocess.run(call, check=True, env=environment, stdout=subprocess.DEVNULL)
    processes = []

    def start(name, *arguments):
        with (folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [shutil.which(name, path=PATH), *arguments],
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        processes.append(process)

    try:
        start(
            "mariadbd",
            "--no-defaults",
            f"--user={user}",
            f"--datadir={folder}/data",
            f"--socket={folder}/mysql.socket",
            f"--pid-file={folder}/mysql.pid",
            f"--port={ports[3]}",
            "--bind-address=127.0.0.1",
        )
        start(
            "munged",
            "--foreground",
            "--force",
            f"--socket={folder}/munge.socket",
            f"--key-file={folder}/munge.key",
            f"--pid-file={folder}/munge.pid",
            f"--log-file={folder}/munge.file",
            f"--seed-file={folder}/munge.seed",
        )
        _wait(lambda: (folder / "munge.socket").exists() and _listens(ports[3]))
        start("slurmdbd", "-D")
        _wait(lambda: _listens(ports[2]))
        start("slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        _wait(lambda: _listens(ports[0]))
        start("slurmd", "-D", "-f", str(folder / "slurm.conf"), "-N", values["host"])
        state = ["sinfo", "--noheader", "--format=%T"]
        _wait(lambda: subprocess.check_output(state, env=environment, text=True) == "idle\n")
        yield environment
    finally:
        subprocess.run(["scancel", f"--user={user}"], env=environment, check=False)
        queue = ["squeue", "--noheader"]
        with suppress(AssertionError, subprocess.SubprocessError):
            _wait(lambda: not subprocess.check_output(queue, env=environment), seconds=20)
        for process in reversed(processes):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _listens(port):
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _wait(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the cluster does not start"
        time.sleep(0.2)
