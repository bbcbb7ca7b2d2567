"""The filter, as the kernel would run it for either architecture, and as it is felt inside a sandbox."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

import pytest

from sandbox_aio.runtimes.namespaces import seccomp

if TYPE_CHECKING:
    from tests.runtimes.machine import Sandbox

ALLOW: Final = 0x7FFF_0000
ARCHITECTURES: Final = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
COLUMN: Final = {"x86_64": 0, "aarch64": 1}


def judge(program: bytes, number: int, *arguments: int, architecture: int) -> int:
    """Interpret a classic BPF program over one system call and return its verdict."""
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<iIQ6Q", number, architecture, 0, *padded)
    accumulator, counter = 0, 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("<HBBI", program, counter * 8)
        counter += 1
        match code:
            case 0x20:
                (accumulator,) = struct.unpack_from("<I", data, operand)
            case 0x15:
                counter += if_true if accumulator == operand else if_false
            case 0x35:
                counter += if_true if accumulator >= operand else if_false
            case 0x45:
                counter += if_true if accumulator & operand else if_false
            case 0x06:
                return int(operand)
            case _:
                raise AssertionError(f"instruction {code:#x}")


def refusal(number: int) -> int:
    """The verdict that makes a call fail with this errno."""
    return 0x0005_0000 | number


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_call_on_the_list_fails_and_every_other_is_allowed(name: str) -> None:
    program, architecture = seccomp.program(name), ARCHITECTURES[name]
    denied = {row[COLUMN[name]]: row[2] for row in seccomp.DENIED.values()}
    for number in range(470):
        if number in (16, 29, 41, 56, 198, 220):
            continue  # These depend on their arguments, on one architecture or the other.
        expected = refusal(denied[number]) if number in denied else ALLOW
        assert judge(program, number, architecture=architecture) == expected, number


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_calls_of_another_architecture_do_not_exist(name: str) -> None:
    program = seccomp.program(name)
    for other in (0x4000_0003, 0x4000_0028, *ARCHITECTURES.values()):
        if other != ARCHITECTURES[name]:
            assert judge(program, 20, architecture=other) == refusal(errno.ENOSYS)


def test_x32_calls_do_not_exist() -> None:
    program = seccomp.program("x86_64")
    assert judge(program, 0x4000_0000 | 39, architecture=ARCHITECTURES["x86_64"]) == refusal(errno.ENOSYS)


@pytest.mark.parametrize(("name", "clone", "ioctl", "socket"), [("x86_64", 56, 16, 41), ("aarch64", 220, 29, 198)])
def test_calls_that_are_judged_by_an_argument(name: str, clone: int, ioctl: int, socket: int) -> None:
    program, architecture = seccomp.program(name), ARCHITECTURES[name]

    def verdict(number: int, *arguments: int) -> int:
        return judge(program, number, *arguments, architecture=architecture)

    assert verdict(clone, 0x0001_1200 | 17) == ALLOW  # fork
    assert verdict(clone, 0x003D_0F00) == ALLOW  # a thread
    for flag in (0x0002_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000):
        assert verdict(clone, flag | 17) == refusal(errno.EPERM)
        assert verdict(clone, flag | 1 << 40) == refusal(errno.EPERM)
    assert verdict(ioctl, 0, 0x5401) == ALLOW
    assert verdict(ioctl, 0, 0x5412) == refusal(errno.EPERM)
    assert verdict(ioctl, 0, 0x5412 | 1 << 32) == refusal(errno.EPERM)  # The kernel looks at 32 bits, too.
    assert verdict(ioctl, 0, 0x541C) == refusal(errno.EPERM)
    for family in range(46):
        assert verdict(socket, family, 1) == (ALLOW if family in (1, 2, 10, 16) else refusal(errno.EAFNOSUPPORT))


CALLS = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
for number in map(int, sys.argv[1:]):
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(-1)] * 6)
    print(number, result, ctypes.get_errno())
"""


def test_the_kernel_refuses_them_inside(box: Sandbox) -> None:
    numbers = {row[0]: row[2] for name, row in seccomp.DENIED.items() if name not in ("vhangup",)}
    answer = box.ask(argv=["python3", "-c", CALLS, *(str(number) for number in numbers)])
    assert answer["code"] == 0, answer["output"]
    results = {}
    for line in answer["output"].splitlines():
        number, result, reason = map(int, line.split())
        results[number] = (result, reason)
    assert results == {number: (-1, reason) for number, reason in numbers.items()}


@pytest.mark.parametrize(
    "command",
    [
        "mount -t tmpfs none /mnt",
        "mount --bind /etc /mnt",
        "umount /proc",
        "unshare -r true",
        "unshare -U true",
        "unshare -n true",
        "nsenter -t 1 -n true",
        "dmesg",
        "swapoff -a",
    ],
)
def test_commands_that_fail(box: Sandbox, command: str) -> None:
    code, output = box.attempt(command)
    assert code != 0 or command == "swapoff -a", output


def test_a_debugger_works(box: Sandbox) -> None:
    """ptrace is allowed: it reaches the sandbox's own processes, and not the daemon."""
    assert box.python(
        "import ctypes, os, signal\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    libc.ptrace(0, 0, 0, 0); os.kill(os.getpid(), signal.SIGSTOP); os._exit(5)\n"
        "assert os.WIFSTOPPED(os.waitpid(pid, 0)[1])\n"
        "assert libc.ptrace(7, pid, 0, 0) == 0\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    ).endswith("5")
