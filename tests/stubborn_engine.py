"""A process tree as hard to end as vLLM's, and harder. Standard library only; ends by itself after a minute.

``stubborn_engine.py stubborn|polite FOLDER [ARGUMENTS]``: the leader starts two children that ignore every polite
signal, one in its process group and one that left group, session and parent; they share memory under a name it had
not when it was mapped, as semaphores do, and leave a socket and a file in the temporary directory.
``FOLDER/<pid>.json`` tells it all. Then the leader becomes the fake engine, if ARGUMENTS are given, or sleeps.
Polite children end with it.
"""

import json
import mmap
import os
import select
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

LIFE_S = 60


def sleep_on(leader: int, held_by_leader: int) -> None:
    """Ignore every polite signal; where children are polite, end when ``held_by_leader`` is held no more."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.close(held_by_leader)
    select.select([leader] if sys.argv[1] == "polite" else [], [], [], LIFE_S)
    os._exit(0)


def fork() -> bool:
    """True in the child."""
    return os.fork() == 0


def main() -> None:
    folder = Path(sys.argv[2])
    shared = Path("/dev/shm", f"psm_vllmperf_{os.getpid()}")
    with (shared.with_name(f"draft_{os.getpid()}")).open("wb+") as file:
        file.truncate(mmap.PAGESIZE)
        block = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        Path(file.name).rename(shared)
    temporary = Path(tempfile.gettempdir())
    (temporary / "left.txt").write_text("left")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(temporary / "left.sock"))
    reader, writer = os.pipe()
    life = os.pipe()
    os.set_inheritable(life[1], True)
    in_group = os.fork()
    if in_group == 0:
        sleep_on(*life)
    if fork():
        os.setsid()
        if fork():
            os.write(writer, str(os.getpid()).encode())
            sleep_on(*life)
        os._exit(0)
    escaped = int(os.read(reader, 32))
    pids = {"leader": os.getpid(), "in_group": in_group, "escaped": escaped, "guardian": os.getppid()}
    draft = folder / f"{os.getpid()}.draft"
    draft.write_text(json.dumps({"pids": pids, "files": [str(shared), str(temporary)]}))
    draft.rename(draft.with_suffix(".json"))
    if len(sys.argv) > 3:
        os.execv(sys.executable, (sys.executable, str(Path(__file__).with_name("fake_engine.py")), *sys.argv[3:]))
    assert block is not None
    time.sleep(LIFE_S)


if __name__ == "__main__":
    main()
