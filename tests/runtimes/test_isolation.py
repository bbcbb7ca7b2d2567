"""What a sandbox sees and may do, asked of a program that runs as root inside."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.runtimes.machine import Machine, Sandbox


def test_programs_run_as_root_of_a_machine_with_its_own_name(box: Sandbox) -> None:
    assert box.sh("id -u; hostname; cat /etc/hostname; pwd").split() == ["0", "box", "box", "/"]
    assert "box" in box.sh("grep 127.0.0.1 /etc/hosts")


def test_the_first_process_is_the_daemon_and_no_process_of_the_host_is_seen(box: Sandbox) -> None:
    assert box.ask(describe=True)["pid"] == 1
    processes = box.sh("cd /proc && echo [0-9]*").split()
    assert len(processes) <= 3
    assert box.sh("cat /proc/1/comm") == "sandbox-daemon"
    assert "python" not in box.sh("tr '\\0' ' ' < /proc/1/cmdline")


def test_the_host_s_homes_secrets_and_state_are_absent(box: Sandbox, machine: Machine) -> None:
    for path in ("/etc/shadow", "/etc/sudoers", "/etc/ssh", "/etc/pip.conf", "/work", "/boot", "/var/lib/docker"):
        code, _ = box.attempt(f"test -e {path}")
        assert code == 1, path
    assert box.sh("ls -A /root; ls -A /home") == ".profile\nuser"
    assert box.attempt(f"test -e {machine.state_dir}")[0] == 1
    assert str(machine.state_dir) not in box.sh("cat /proc/self/mountinfo /proc/self/mounts")


def test_the_server_s_environment_is_empty_inside(box: Sandbox) -> None:
    assert box.ask(describe=True)["environ"] == {}


@pytest.mark.parametrize("name", ["environ", "exe", "fd", "maps", "mem", "root", "cwd", "auxv", "map_files"])
def test_the_daemon_s_process_is_closed_to_root_inside(box: Sandbox, name: str) -> None:
    """Trap (h): without PR_SET_DUMPABLE 0 these gave away the server's environment, files and memory."""
    code, output = box.attempt(f"cat /proc/1/{name} || ls -l /proc/1/{name}/")
    assert code != 0
    assert "ermission denied" in output


def test_the_daemon_cannot_be_traced(box: Sandbox) -> None:
    assert "1" in box.python(
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True);"
        "assert libc.ptrace(16, 1, 0, 0) == -1; print(ctypes.get_errno())"
    )


def test_there_is_one_network_interface_and_it_is_up(box: Sandbox) -> None:
    assert [line.split(":")[0].strip() for line in box.sh("tail -n +3 /proc/net/dev").splitlines()] == ["lo"]
    box.python(
        "import socket\n"
        "for family, host in ((socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')):\n"
        "    server = socket.create_server((host, 0), family=family)\n"
        "    socket.create_connection(server.getsockname()[:2]).close()\n"
    )


def test_nothing_outside_is_reachable(box: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        errors = box.python(
            "import socket\n"
            f"for host, port in (('127.0.0.1', {port}), ('10.0.0.1', 80), ('1.1.1.1', 53)):\n"
            "    try: socket.create_connection((host, port), 5)\n"
            "    except OSError as error: print(error.errno)\n"
        )
    assert errors.split() == ["111", "101", "101"]


def test_abstract_sockets_of_the_host_are_not_reachable(box: Sandbox) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(b"\0sandbox-aio-test")
        server.listen()
        output = box.python(
            "import socket\ntry: socket.socket(socket.AF_UNIX).connect(b'\\0sandbox-aio-test')\n"
            "except ConnectionRefusedError: print('refused')"
        )
    assert output == "refused"


def test_capabilities_are_few_and_cannot_grow(box: Sandbox) -> None:
    status = dict(line.split(":\t") for line in box.sh("cat /proc/self/status").splitlines() if ":\t" in line)
    kept = int(status["CapBnd"], 16)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == kept
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    for forbidden in (12, 16, 17, 20, 21, 22, 24, 25, 26, 34, 36, 38, 39):  # NET_ADMIN, SYS_MODULE, ..., SYS_ADMIN, ...
        assert not kept >> forbidden & 1, forbidden
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert status["Umask"] == "0022"


def test_only_these_file_systems_are_mounted(box: Sandbox) -> None:
    mounts: dict[str, tuple[str, set[str]]] = {}
    for line in box.sh("cat /proc/self/mounts").splitlines():
        words = line.split(" ")
        mounts[words[1]] = (words[2], set(words[3].split(",")))
    assert {"/", "/usr", "/dev", "/dev/pts", "/dev/shm", "/proc", "/proc/sys"} <= set(mounts)
    for point, (kind, options) in mounts.items():
        assert kind in ("overlay", "proc", "tmpfs", "devtmpfs", "devpts", "ext4", "xfs", "btrfs"), point
        if kind != "devtmpfs":
            assert "nosuid" in options, point
        if kind in ("overlay", "proc"):
            assert "nodev" in options, point


def test_devices_are_the_harmless_ones(box: Sandbox) -> None:
    devices = box.python(
        "import os, stat\n"
        "for folder, _, names in os.walk('/dev'):\n"
        "    for path in (os.path.join(folder, name) for name in names):\n"
        "        mode = os.lstat(path).st_mode\n"
        "        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode): print(path)\n"
    )
    names = ("full", "null", "pts/ptmx", "random", "tty", "urandom", "zero")
    assert sorted(devices.split()) == [f"/dev/{name}" for name in names]
    assert box.sh("echo x > /dev/null; head -c 3 /dev/zero | wc -c; ls -l /dev/fd | wc -l").startswith("3")
    assert box.attempt("mknod /tmp/sda b 8 0")[0] != 0


def test_terminals_are_the_sandbox_s_own(box: Sandbox) -> None:
    output = box.python("import os; master, slave = os.openpty(); print(os.ttyname(slave))")
    assert output == "/dev/pts/0"


def test_what_proc_tells_of_the_whole_machine_is_masked_and_its_switches_are_read_only(box: Sandbox) -> None:
    for name in ("kcore", "keys", "kallsyms", "timer_list", "interrupts", "config.gz"):
        assert box.sh(f"head -c 1 /proc/{name} 2>/dev/null | wc -c") == "0", name
    for switch in ("sys/kernel/hostname", "sysrq-trigger", "sys/net/ipv4/ip_forward", "sys/vm/drop_caches"):
        code, output = box.attempt(f"echo 1 > /proc/{switch}")
        assert code != 0, switch
        assert any(why in output for why in ("Read-only file system", "Permission denied", "nonexistent")), switch


def test_sys_is_a_plain_directory(box: Sandbox) -> None:
    assert "/sys" not in {line.split()[1] for line in box.sh("cat /proc/mounts").splitlines()}
    assert box.sh("cat /sys/devices/system/cpu/online") == Path("/sys/devices/system/cpu/online").read_text().strip()
    assert int(box.sh("nproc")) == len(os.sched_getaffinity(0))


def test_nothing_can_be_imported_once_the_daemon_runs(sandbox: Sandbox) -> None:
    """Whatever is found in the file system by then is the sandbox's own."""
    sandbox.sh("mkdir -p /tmp/x && echo 'print(1)' > /tmp/x/evil.py && cp /tmp/x/evil.py /evil.py")
    assert sandbox.ask(describe=True)["path"] == []
    for module in ("evil", "colorsys", "sndhdr", "xxlimited", "antigravity"):
        assert sandbox.ask(**{"import": module}) == {"code": 1, "output": f"No module named {module!r}"}


def test_the_daemon_holds_no_descriptor_of_the_host(box: Sandbox) -> None:
    """stdin, stdout and stderr; the zygote's socket; the listener; the connection with its file; the directory being
    read.
    """
    assert len(box.ask(describe=True)["descriptors"]) <= 8
    assert box.sh("ls /proc/self/fd").split() == ["0", "1", "2", "3"]


def test_configuration_reaches_the_daemon(machine: Machine) -> None:
    changes = {"secret": "hush", "work_dir": "/srv", "user": "user", "env_vars": {"A": "é" * 100_000}}
    with machine.sandbox(hostname="other.example", **changes) as sandbox:
        config = sandbox.ask(describe=True)["config"]
    expected = {"sandbox_id": sandbox.id, "hostname": "other.example", "files_root": "/home/user", **changes}
    assert config == expected


def test_limits_that_need_no_privilege_are_set(box: Sandbox) -> None:
    limits = box.sh("ulimit -c; ulimit -u 2>/dev/null || sh -c 'ulimit -p'; ulimit -n").split()
    assert limits[0] == "0"
    assert int(limits[1]) <= 16_384
    assert 1024 <= int(limits[2]) <= 65_536


def test_a_change_stays_in_the_sandbox(sandbox: Sandbox, machine: Machine) -> None:
    sandbox.sh(
        "echo mine > /etc/motd; echo mine >> /etc/passwd; rm /etc/profile; touch /srv/new /opt/new /home/user/new"
    )
    assert sandbox.attempt("test -e /etc/profile")[0] == 1
    with machine.sandbox() as other:
        assert "mine" not in other.sh("cat /etc/passwd /etc/profile")
        assert other.attempt("test -e /etc/motd -o -e /srv/new -o -e /opt/new -o -e /home/user/new")[0] == 1


@pytest.mark.root
def test_a_change_of_the_machine_s_programs_stays_in_the_sandbox(sandbox: Sandbox, machine: Machine) -> None:
    sandbox.sh("echo mine > /usr/bin/only-here; rm /usr/bin/yes; mkdir /usr/new; rm -rf /usr/share/doc")
    assert sandbox.attempt("test -e /usr/bin/yes -o -e /usr/share/doc")[0] == 1
    assert not Path("/usr/bin/only-here").exists()
    assert Path("/usr/bin/yes").exists()
    with machine.sandbox() as other:
        assert other.sh("ls -d /usr/bin/yes /usr/share/doc").split() == ["/usr/bin/yes", "/usr/share/doc"]
        assert other.attempt("test -e /usr/new -o -e /usr/bin/only-here")[0] == 1


@pytest.mark.root
def test_set_user_id_programs_give_nothing(sandbox: Sandbox) -> None:
    sandbox.sh("cp /usr/bin/id /opt/id; chown 1000:1000 /opt/id; chmod 6755 /opt/id")
    assert sandbox.sh("/opt/id") == sandbox.sh("id") == "uid=0(root) gid=0(root) groups=0(root)"


@pytest.mark.root
def test_root_inside_is_nobody_outside(sandbox: Sandbox, machine: Machine) -> None:
    """Each sandbox has host ids of its own, and its files on the host's disk belong to them."""
    first, start, count = map(int, sandbox.sh("cat /proc/self/uid_map").split())
    assert (first, count) == (0, 65_536)
    assert start >= 2_000_000_000
    assert sandbox.sh("cat /proc/self/gid_map").split() == ["0", str(start), "65536"]
    sandbox.sh("touch /root/mine; touch /home/user/his; chown user:user /home/user/his; chown 33:33 /tmp")
    upper = machine.state_dir / "sandboxes" / sandbox.id / "upper"
    assert (upper / "root/mine").stat().st_uid == start
    assert (upper / "home/user/his").stat().st_uid == start + 1000
    assert (upper / "tmp").stat().st_gid == start + 33
    with machine.sandbox() as other:
        assert int(other.sh("cat /proc/self/uid_map").split()[1]) not in range(start - 65_535, start + 65_536)


@pytest.mark.root
def test_the_snapshot_s_owners_are_right_inside(sandbox: Sandbox) -> None:
    assert sandbox.sh("stat -c '%u:%g %a' / /usr /etc/passwd /tmp /home/user /usr/bin/env /root").splitlines() == [
        "0:0 755",
        "0:0 755",
        "0:0 644",
        "0:0 1777",
        "1000:1000 755",
        "0:0 755",
        "0:0 700",
    ]


@pytest.mark.root
def test_another_user_inside_is_not_root(sandbox: Sandbox) -> None:
    run = "setpriv --reuid user --regid user --init-groups --"
    assert sandbox.sh(f"{run} id") == "uid=1000(user) gid=1000(user) groups=1000(user)"
    for forbidden in ("touch /etc/x", "touch /usr/x", "ls /root", "chown user /etc/passwd", "kill 1", "hostname x"):
        assert sandbox.attempt(f"{run} {forbidden}")[0] != 0, forbidden
    assert sandbox.sh(f"{run} grep CapEff /proc/self/status").split()[1] == "0" * 16
    sandbox.sh(f"{run} sh -c 'touch /home/user/x /tmp/x /var/tmp/x /dev/shm/x'")


@pytest.mark.root
def test_only_this_user_may_reach_a_daemon(sandbox: Sandbox) -> None:
    assert sandbox.address.path is not None
    assert stat.S_IMODE(Path(sandbox.address.path).stat().st_mode) == 0o600
    assert stat.S_IMODE(sandbox.machine.state_dir.stat().st_mode) & 0o022 == 0
