"""Steps that do what the tests of the runners need; named ``steps_for_tests:NAME``, found through ``PYTHONPATH``."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from airloop.errors import RejectedRows, StepSkipped, Unreachable
from airloop.frame import StepContext, StepResult, step


@step()
def count(ctx: StepContext, *, rows: int = 3) -> StepResult:
    """Succeed."""
    ctx.log.info("counting %d rows", rows)
    return StepResult(counts={"rows": rows})


@step()
def reject(ctx: StepContext) -> StepResult:
    """End as a data gate does."""
    raise RejectedRows("raw.flights: 214 rows are bad", "fix the source")


@step()
def unreachable(ctx: StepContext) -> StepResult:
    """End as a step does whose service is down."""
    raise Unreachable("http://127.0.0.1:1 does not answer", "start it")


@step()
def skip(ctx: StepContext) -> StepResult:
    """End as a step that its author asked to skip."""
    raise StepSkipped("nothing to do on a Sunday")


@step()
def bug(ctx: StepContext) -> StepResult:
    """Fail by a bug."""
    raise ZeroDivisionError("rows by zero")


@step()
def leave(ctx: StepContext, *, code: int = 0) -> StepResult:
    """Leave the interpreter, as a library that should not may do."""
    sys.exit(code)


@step()
def allocate(ctx: StepContext, *, mb: int, in_child: bool = False, keep_s: float = 20.0) -> StepResult:
    """Take memory, here or in a process of its own, and keep it for a while."""
    program = f"block = b'x' * ({mb} << 20); import time; time.sleep({keep_s})"
    if in_child:
        subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)
    else:
        exec(program)
    return StepResult()


@step()
def talk(ctx: StepContext, *, secret: str = "", go: str = "") -> StepResult:
    """Say things on every way out; the last words once a file is there, if one is named."""
    ctx.log.warning("a warning")
    logging.getLogger("somebody.else").error("an error of somebody else")
    print("plain output")
    sys.stderr.write("plain error output\n")
    sys.stdout.buffer.write(b"not \xff\xfe text\n" + b"\x00\x01\x1b[31mred\n" + b"10%\r50%\r100%\n")
    sys.stdout.buffer.flush()
    if secret:
        value = os.environ[secret]
        print(f"the secret is {value}, really")
        ctx.log.info("it is %s", value)
        os.write(2, f"raw {value}\n".encode())
    _wait_for(go)
    print("last words", end="")
    return StepResult()


def _wait_for(go: str) -> None:
    while go and not Path(go).exists():
        time.sleep(0.02)


@step()
def long_line(ctx: StepContext, *, mb: int = 10) -> StepResult:
    """Write one line of so many MiB."""
    sys.stdout.write("x" * (mb << 20) + "\n")
    return StepResult()


@step()
def write_environment(ctx: StepContext, *, path: str, go: str = "") -> StepResult:
    """Write down what this process was given, and end once a file is there, if one is named."""
    Path(path).write_text(
        json.dumps(
            {
                "environment": dict(os.environ),
                "argv": sys.argv,
                "cwd": os.getcwd(),
                "stdin": os.readlink("/proc/self/fd/0"),
                "descriptors": sorted(os.listdir("/proc/self/fd")),
                "session": os.getsid(0) == os.getpid(),
                "processors": sorted(os.sched_getaffinity(0)),
                "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)],
                "path": sys.path,
                "main": getattr(sys.modules["__main__"].__spec__, "name", None),
            }
        )
    )
    _wait_for(go)
    return StepResult()


@step()
def family(ctx: StepContext, *, path: str, leave_behind: bool = False, ignore_term: bool = False) -> StepResult:
    """Start a child, a grandchild and a daemon in a session of its own; write down their process ids; wait."""
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if ignore_term else ""
    program = f"""{ignore}
import os, subprocess, sys, time
write = os.open({path!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
grandchild = os.fork()
if grandchild and os.fork() == 0:
    os.setsid()
    if os.fork():
        os._exit(0)
os.write(write, b"%d\\n" % os.getpid())
time.sleep(600)
"""
    subprocess.Popen([sys.executable, "-I", "-S", "-c", program])
    while not Path(path).exists() or len(Path(path).read_text().split()) < 3:
        time.sleep(0.02)
    with open(path, "a") as file:
        file.write(f"{os.getpid()}\n")
    if not leave_behind:
        time.sleep(600)
    return StepResult()


@step()
def crash(ctx: StepContext, *, number: int = int(signal.SIGSEGV)) -> StepResult:
    """Die by a signal."""
    os.kill(os.getpid(), number)
    time.sleep(60)
    return StepResult()


@step()
def burn(ctx: StepContext, *, cpu_s: float, in_child: bool = False) -> StepResult:
    """Use the processor for a while, here or in a process of its own."""
    program = f"""
import time
end = time.process_time() + {cpu_s}
while time.process_time() < end:
    pass
"""
    if in_child:
        subprocess.run([sys.executable, "-I", "-S", "-c", program], check=True)
    else:
        exec(program)
    return StepResult()


@step()
def draw(ctx: StepContext, *, path: str) -> StepResult:
    """Write down random numbers, and what an earlier child may have left in this process."""
    import random

    left = getattr(random, "left_by_a_step", None)
    random.left_by_a_step = os.getpid()  # type: ignore[attr-defined]
    Path(path).write_text(json.dumps({"numbers": [random.random() for _ in range(3)], "left": left}))
    return StepResult()


@step()
def write_rows(ctx: StepContext, *, table: str, rows: int) -> StepResult:
    """Append rows to a table, once."""
    import pyarrow as pa

    ctx.warehouse.ensure(table, pa.schema([("n", pa.int64())]))
    made = ctx.warehouse.commit(table, pa.table({"n": pa.array(range(rows), pa.int64())}), key=ctx.key)
    return StepResult(outputs={"table": made.ref}, counts={"rows": made.added})
