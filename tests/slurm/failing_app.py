#!/usr/bin/env python3
"""bids-mllm on which misfortune falls: what is given in FAULTS for a participant's next attempt, then nothing.

FAULTS is a folder with a file a participant, which holds one word an attempt still to come. REAL_APP is the command
that is run with the same arguments in this very process, so that what is done to this process is done to the app.

kill     SIGKILL while it holds a claim on the feature store, that is in the middle of an extraction
memory   memory is taken until the job has more than it asked for; begins when the participant `kill` was killed
cancel   a file says that it may be cancelled now
wait     nothing, but starts when the participant `kill` was killed
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

PATIENCE = 60.0


def claims_of(store: Path, pid: int) -> list[Path]:
    """Return the claims that a process holds; one that is being written has a hidden name of its own."""
    held = []
    for path in (store / ".claims").glob("[!.]*.json"):
        try:
            if json.loads(path.read_text())["owner"]["pid"] == pid:
                held.append(path)
        except (OSError, ValueError, KeyError):
            continue
    return held


def wait_until(true, seconds: float) -> bool:
    """Wait until something holds; return whether it came to that."""
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.002)
    return bool(found)


def befall(fault: str, faults: Path, store: Path, pid: int) -> None:
    """Let a misfortune happen to the process of the app."""
    if fault == "kill":
        if wait_until(lambda: claims_of(store, pid), PATIENCE):
            (faults / "claim-at-kill").write_text("".join(path.read_text() for path in claims_of(store, pid)))
        os.kill(pid, signal.SIGKILL)
        (faults / "killed").touch()
    elif fault == "memory":
        wait_until(lambda: claims_of(store, pid), 10.0)
        ballast = []
        while True:
            ballast.append(bytearray(os.urandom(1 << 20) * 100))
            time.sleep(0.05)
    elif fault == "cancel":
        wait_until(lambda: claims_of(store, pid), 8.0)
        (faults / "cancel-now").touch()


def main() -> None:
    """Take the next misfortune of this participant, start what will do it, and become the app."""
    words, faults = sys.argv[1:], Path(os.environ["FAULTS"])
    label = words[words.index("--participant-label") + 1] if "--participant-label" in words else "group"
    plan = faults / label
    coming = plan.read_text().split() if plan.exists() else []
    if coming:
        plan.write_text(" ".join(coming[1:]))
        if coming[0] in ("memory", "wait"):
            wait_until((faults / "killed").exists, PATIENCE)
        parent = os.getpid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            befall(coming[0], faults, Path(words[1]) / "sourcedata" / "features", parent)
            os._exit(0)
    os.execv(os.environ["REAL_APP"], [os.environ["REAL_APP"], *words])


main()
