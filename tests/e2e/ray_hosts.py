"""A machine to type on, a head and workers, as docs/cluster.md finds them: sshd, a user, Python, and nothing of Baton.

One thing is spared: what `pip install` would download lies in a virtual environment already, which borrows the packages of the
tests' own. `pip` itself runs as in the guide, offline, and installs the Baton that `ray up` brought.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from deploy.config.topology import cache_directory
from tests.e2e.hosts import HOME, Host, Network

ROOT = Path(__file__).parents[2]
OPERATOR, HEAD = "operator", "head"
WORKERS = ("prefill-1", "decode-1", "spare-1")
BORROWED = ".packages"
PIP = """\
[global]
no-index = true
disable-pip-version-check = true
[install]
no-build-isolation = false
"""
RAY = """\
#!{home}/baton-env/bin/python
import sys
from ray.scripts.scripts import main
sys.exit(main())
"""
OPERATOR_SHELL = "export PATH=$HOME/baton-env/bin:$PATH RAY_AUTH_MODE=token; cd ~/baton\n"
HEAD_SHELL = "export BATON_DTYPE=float32 BATON_MAX_MODEL_LEN=1024 BATON_KV_CACHE_MEMORY=64MiB\n"


class RayHosts:
    """`with RayHosts(directory) as hosts:`; they are gone afterwards, with all that ran in them."""

    def __init__(self, directory: Path) -> None:
        packages, cache = Path(sys.prefix), cache_directory()
        cache.mkdir(parents=True, exist_ok=True)
        lent = {BORROWED: packages, ".cache/baton": cache}
        self._network = Network(directory, (OPERATOR, HEAD, *WORKERS), lent)

    def __enter__(self) -> dict[str, Host]:
        hosts = self._network.__enter__()
        for host in hosts.values():
            install_python(host)
        (hosts[OPERATOR].home / ".bashrc").write_text(OPERATOR_SHELL)
        (hosts[HEAD].home / ".bashrc").write_text(HEAD_SHELL)
        check_out(hosts[OPERATOR])
        (hosts[OPERATOR].home / ".ssh" / "config").write_text("StrictHostKeyChecking accept-new\n")
        return hosts

    def __exit__(self, *failure: object) -> None:
        self._network.__exit__(*failure)


def install_python(host: Host) -> None:
    """An environment at ~/baton-env that borrows packages, and a pip that downloads nothing."""
    environment = host.home / "baton-env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    site = Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (environment / site / "borrowed.pth").write_text(f"{HOME}/{BORROWED}/{site}\n")
    ray = environment / "bin" / "ray"
    ray.write_text(RAY.format(home=HOME))
    ray.chmod(0o755)
    (host.home / ".config" / "pip").mkdir(parents=True)
    (host.home / ".config" / "pip" / "pip.conf").write_text(PIP)
    (host.home / ".bashrc").touch()


def check_out(host: Host) -> None:
    """This checkout's tracked and new files at ~/baton."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    for name in filter(None, names.split("\0")):
        target = host.home / "baton" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, target)


def adapt(lines: list[str], hosts: dict[str, Host]) -> str:
    """Lines of the guide with these hosts' addresses and user."""
    addresses = {f"10.0.0.{11 + i}": hosts[name].address for i, name in enumerate(WORKERS)}
    text = "\n".join(lines).replace("10.0.0.10", hosts[HEAD].address)
    for written, real in addresses.items():
        text = text.replace(written, real)
    return text.replace("ubuntu@", "root@").replace("ssh_user: ubuntu", "ssh_user: root")


def edit_cluster_file(hosts: dict[str, Host]) -> None:
    """What the guide asks its reader to write into cluster.yaml."""
    path = hosts[OPERATOR].home / "baton" / "cluster.yaml"
    path.write_text(adapt(path.read_text().splitlines(), hosts) + "\n")
