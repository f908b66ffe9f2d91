"""Stop a real process at each system call that changes files: ptrace and seccomp through ctypes, on x86-64 Linux.

Invariants
- A call is judged before the kernel runs it; a killed process has not run the call that it was killed at.
- Only calls on files below the given folder are counted, so the same work gives the same numbers.
- What is traced is a forked child; the child dies with its tracer. Other calls run at full speed.

    done = trace(work, folder, lambda number, call: KILL if number == 7 else None)
    done.killed, done.calls, done.said
"""

import ctypes
import errno
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

KILL, HALF = "kill", "half"
"""Judgements: stop the machine before the call; or run half of a write, then stop it. A number is an errno."""

_TRACEME, _CONT, _GETREGS, _SETREGS, _SYSCALL, _SETOPTIONS = 0, 7, 12, 13, 24, 0x4200
_TRACESECCOMP, _EXITKILL, _SECCOMP_STOP = 1 << 7, 1 << 20, 7
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2  # of prctl
_LOAD, _EQUALS, _RETURN = 0x20, 0x15, 0x06  # BPF
_TRACE, _ALLOW = 0x7FF00000, 0x7FFF0000
_ON_DESCRIPTORS = {1: "write", 18: "pwrite64", 20: "writev", 74: "fsync", 75: "fdatasync", 77: "ftruncate",
                   285: "fallocate", 296: "pwritev"}  # fmt: skip
_ON_NAMES = {76: "truncate", 82: "rename", 83: "mkdir", 84: "rmdir", 86: "link", 87: "unlink", 258: "mkdirat",
             263: "unlinkat", 264: "renameat", 265: "linkat", 316: "renameat2", 85: "creat"}  # fmt: skip
_OPEN = {2: ("open", "rsi"), 257: ("openat", "rdx")}  # and the register of its flags
SYNCS = ("fsync", "fdatasync")
WRITES = ("write", "pwrite64")


_REGISTERS = """r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss
                fs_base gs_base ds es fs gs"""


class _Registers(ctypes.Structure):
    """struct user_regs_struct of x86-64."""

    _fields_ = [(name, ctypes.c_ulonglong) for name in _REGISTERS.split()]


class _Step(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = [
        ("code", ctypes.c_ushort),
        ("then", ctypes.c_ubyte),
        ("otherwise", ctypes.c_ubyte),
        ("value", ctypes.c_uint),
    ]


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.POINTER(_Step))]


@dataclass
class Traced:
    """What became of a child.

    Attributes:
        calls: names of the calls that were counted, in order.
        said: what the child wrote into its pipe.
        killed: whether it was killed at a call.
        code: its exit code; negative for a signal.
    """

    calls: list[str] = field(default_factory=list)
    said: bytes = b""
    killed: bool = False
    code: int = 0


Say = Callable[[bytes], None]
Judge = Callable[[int, str], str | int | None]


def works() -> str:
    """Why tracing does not work here, or ""."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "processes are traced on x86-64 Linux only"

    def work(begin: Callable[[], None], say: Say) -> None:
        begin()
        say(b"x")

    try:
        done = trace(work, Path("/nowhere"), lambda number, call: None)
    except OSError as error:
        return f"this machine does not allow ptrace ({error.strerror})"
    return "" if done.said == b"x" and done.code == 0 else "this machine does not allow ptrace"


def trace(work: Callable[[Callable[[], None], Say], None], folder: Path, judge: Judge) -> Traced:
    """Run `work(begin, say)` in a forked child, traced from the moment it calls `begin`.

    Args:
        judge: gets the number of a counted call, from 0, and its name; None lets it pass.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _in_child(work, reading, writing)
    os.close(writing)
    done = Traced()
    try:
        _follow(child, str(folder), judge, done)
    finally:
        with open(reading, "rb") as pipe:
            done.said = pipe.read()
    return done


def _in_child(work: Callable[[Callable[[], None], Say], None], reading: int, writing: int) -> None:
    code = 70
    try:
        os.close(reading)
        with open(writing, "wb", buffering=0) as pipe:
            work(_begin, lambda data: pipe.write(data) and None)
        code = 0
    except BaseException:  # noqa: BLE001 -- the child ends here, whatever it was
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _begin() -> None:
    _ptrace(_TRACEME, 0)
    os.kill(os.getpid(), signal.SIGSTOP)
    # Behind the stop: until the tracer is there, a call that the filter names would fail.
    numbers = [*_ON_DESCRIPTORS, *_ON_NAMES, *_OPEN]
    tests = [_Step(_EQUALS, len(numbers) - i, 0, number) for i, number in enumerate(numbers)]
    program = [_Step(_LOAD, 0, 0, 0), *tests, _Step(_RETURN, 0, 0, _ALLOW), _Step(_RETURN, 0, 0, _TRACE)]
    steps = (_Step * len(program))(*program)
    _prctl(_NO_NEW_PRIVS, 1)
    _prctl(_SECCOMP, _FILTER, ctypes.byref(_Program(len(program), steps)))


def _follow(child: int, folder: str, judge: Judge, done: Traced) -> None:
    _, status = os.waitpid(child, 0)
    if os.WIFSTOPPED(status):  # else it ended before it began
        _ptrace(_SETOPTIONS, child, _TRACESECCOMP | _EXITKILL)
        _ptrace(_CONT, child)
        _, status = os.waitpid(child, 0)
    while os.WIFSTOPPED(status):
        request, signalled = _CONT, 0
        if status >> 16 == _SECCOMP_STOP:
            request = _at_call(child, folder, judge, done)
        elif os.WSTOPSIG(status) == signal.SIGTRAP:  # the end of a call that was halved
            _kill(child, done)
        else:
            signalled = os.WSTOPSIG(status)
        _ptrace(request, child, signalled)
        _, status = os.waitpid(child, 0)
    done.code = os.waitstatus_to_exitcode(status)


def _at_call(child: int, folder: str, judge: Judge, done: Traced) -> int:
    """Judge one call and carry the verdict out; how the child is to go on."""
    registers = _Registers()
    _ptrace(_GETREGS, child, ctypes.byref(registers))
    name = _name(child, registers, folder)
    if not name:
        return _CONT
    done.calls.append(name)
    verdict = judge(len(done.calls) - 1, name)
    if verdict is None:
        return _CONT
    if verdict == HALF:
        registers.rdx //= 2
    else:
        registers.orig_rax = 2**64 - 1  # no such call: the kernel skips it, and returns what is in rax
        registers.rax = 2**64 - verdict if isinstance(verdict, int) else 0
    _ptrace(_SETREGS, child, ctypes.byref(registers))
    if verdict == KILL:
        _kill(child, done)
    return _SYSCALL if verdict == HALF else _CONT


def _kill(child: int, done: Traced) -> None:
    done.killed = True
    os.kill(child, signal.SIGKILL)


def _name(child: int, registers: _Registers, folder: str) -> str:
    """The name of a call that changes a file below the folder, or ""."""
    number = registers.orig_rax
    if number in _ON_NAMES:
        return _ON_NAMES[number]
    if number in _OPEN:
        name, at = _OPEN[number]
        return name if getattr(registers, at) & (os.O_CREAT | os.O_TRUNC) else ""
    if number not in _ON_DESCRIPTORS:
        return ""
    try:
        path = os.readlink(f"/proc/{child}/fd/{registers.rdi & 0xFFFFFFFF}")
    except OSError:
        return ""
    return _ON_DESCRIPTORS[number] if path.startswith(folder) else ""


def _ptrace(request: int, child: int, data: object = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(request, child, None, data) == -1:
        number = ctypes.get_errno()
        if number != errno.ESRCH:  # a killed child answers no more; waitpid says so
            raise OSError(number, os.strerror(number))


def _prctl(option: int, value: int, argument: object = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    if libc.prctl(option, value, argument, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl failed")
