"""Hosts that share nothing but a switch: each has its own network, process table, name, HOME, /tmp and /dev/shm, and an sshd.

The switch is a bridge in the first host's network namespace, so the machine's own network is never touched, and all of it goes
with its processes. A `ray stop` in one host sees only that host.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

NETWORK = "10.77.0"
PREFIX_BITS = 24
HOME = "/mnt"
"""Where root lives in a host: a directory of every machine, and empty; a Python may be installed in the real /root."""
START_TIMEOUT_S = 20.0
NEEDED = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "ssh-keygen": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
    "rsync": "rsync",
}
ENVIRONMENT = (
    f"HOME={HOME}",
    "USER=root",
    "LANG=C.UTF-8",
    "TERM=dumb",
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
)
ALONE = (
    *("setpriv", "--pdeathsig", "KILL"),
    *(
        "unshare",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount",
        "--mount-proc",
        "--uts",
        "--ipc",
        "--net",
    ),
)
"""In namespaces of its own, and gone with the process that started it."""
SSHD = """\
Port 22
HostKey {home}/.ssh/host_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
AuthorizedKeysFile {home}/.ssh/authorized_keys
"""
INIT = """\
set -e
{lent}
mount --bind {root}/hosts /etc/hosts
mount --bind {root}/passwd /etc/passwd
mount --rbind {root}/home {home}
mount --bind {root}/tmp /tmp
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mkdir /run/sshd
hostname {name}
ip link set lo up
exec /usr/sbin/sshd -D -e -f {home}/.ssh/sshd_config
"""


def why_not() -> str | None:
    """The reason why hosts cannot be made here; None when they can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    missing = sorted({package for name, package in NEEDED.items() if shutil.which(name) is None})
    if missing:
        return f"apt-get install {' '.join(missing)}"
    bridge = ["ip", "link", "add", "switch", "type", "bridge"]
    done = subprocess.run([*ALONE, *bridge], check=False, capture_output=True, text=True)
    return None if done.returncode == 0 else f"no namespaces here: {done.stderr.strip()}"


@dataclass
class Host:
    """One host: its files under `root`, its first process, and its address on the switch."""

    name: str
    address: str
    root: Path
    process: subprocess.Popen[bytes]
    pid: int

    @property
    def home(self) -> Path:
        """What the host sees as its HOME."""
        return self.root / "home"

    def command(self, shell_line: str) -> list[str]:
        """The command line that runs `shell_line` in a login shell of this host."""
        inside = ["nsenter", "-t", str(self.pid), "-a", f"--wdns={HOME}", "env", "-i", *ENVIRONMENT]
        return [*inside, "bash", "-lc", f"source ~/.bashrc; {shell_line}"]

    def run(
        self, shell_line: str, timeout_s: float = 60.0, *, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """`shell_line` to its end; AssertionError with its output when it fails."""
        done = subprocess.run(
            self.command(shell_line),
            check=False,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout_s,
        )
        assert not check or done.returncode == 0, (
            f"{self.name}$ {shell_line}\n{done.stdout}\nexit status {done.returncode}"
        )
        return done

    def processes(self) -> list[str]:
        """Command lines of everything that runs here, without its first process and this question."""
        table = self.run("ps -eo pid=,ppid=,args=").stdout.splitlines()
        return [line for line in table if " ps -eo " not in line and line.split()[0] != "1"]

    def power_off(self) -> None:
        """Everything in the host ends at once, as when the power fails."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, 9)
        self.process.wait(timeout=START_TIMEOUT_S)


@dataclass
class Network:
    """Hosts in the order of `names`; the first holds the switch. `with Network(directory, names) as hosts:`"""

    directory: Path
    names: tuple[str, ...]
    lent: dict[str, Path] = field(default_factory=dict)
    """Directories of this machine that every host finds in its HOME, under the name that is the key."""
    hosts: dict[str, Host] = field(default_factory=dict)

    def __enter__(self) -> dict[str, Host]:
        try:
            key = self._key()
            for index, name in enumerate(self.names):
                self.hosts[name] = self._start(name, f"{NETWORK}.{index + 1}", key)
                self._plug(self.hosts[name], index)
        except BaseException:
            self._end()
            raise
        return self.hosts

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        for host in reversed(self.hosts.values()):
            host.power_off()

    def _key(self) -> Path:
        key = self.directory / "key"
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
        subprocess.run(command, check=True)
        return key

    def _start(self, name: str, address: str, key: Path) -> Host:
        root = self.directory / name
        ssh = root / "home" / ".ssh"
        ssh.mkdir(parents=True)
        (root / "tmp").mkdir(mode=0o1777)
        lines = [f"{NETWORK}.{i + 1} {other}" for i, other in enumerate(self.names)]
        (root / "passwd").write_text(
            f"root:x:0:0:root:{HOME}:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
        )
        (root / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        shutil.copy(key, ssh / "id_ed25519")
        shutil.copy(key, ssh / "host_key")
        shutil.copy(key.with_suffix(".pub"), ssh / "authorized_keys")
        (ssh / "sshd_config").write_text(SSHD.format(home=HOME))
        lent = []
        for place, source in self.lent.items():
            (root / "home" / place).mkdir(parents=True)
            lent.append(f"mount --bind {source} {root}/home/{place}")
        script = INIT.format(root=root, home=HOME, name=name, lent="\n".join(lent))
        with (root / "log").open("w") as log:
            process = subprocess.Popen(
                [*ALONE, "sh", "-c", script],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return Host(name, address, root, process, first_process(process, root / "log"))

    def _plug(self, host: Host, index: int) -> None:
        """A cable between the host and the switch."""
        switch = self.hosts[self.names[0]]

        def ip(where: Host, line: str) -> None:
            inside = ["nsenter", "-t", str(where.pid), "-n", "ip", *line.split()]
            subprocess.run(inside, check=True)

        if host is switch:
            ip(switch, "link add eth0 type bridge")
        else:
            ip(switch, f"link add port{index} type veth peer name eth0 netns {host.pid}")
            ip(switch, f"link set port{index} master eth0 up")
        ip(host, f"addr add {host.address}/{PREFIX_BITS} dev eth0")
        ip(host, "link set eth0 up")


def first_process(unshare: subprocess.Popen[bytes], log: Path) -> int:
    """The pid, outside, of the host's process 1, once it is sshd."""
    children = Path(f"/proc/{unshare.pid}/task/{unshare.pid}/children")
    until_s = time.monotonic() + START_TIMEOUT_S
    waiter = threading.Event()
    while time.monotonic() < until_s and unshare.poll() is None:
        found = children.read_text().split()
        if found and Path(f"/proc/{found[0]}/comm").read_text() == "sshd\n":
            return int(found[0])
        waiter.wait(0.02)
    unshare.kill()
    raise AssertionError(f"a host did not start: {log.read_text()}")
