"""Claims, with real processes: no name is held twice, and what a dead or sleeping holder claimed is taken over."""

import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bids_mllm.exceptions import StoreError
from bids_mllm.io import owners
from bids_mllm.io.claims import Claim, Claims, ClaimsFolder
from bids_mllm.io.owners import UNKNOWN_MACHINE, Owner, is_gone, temporary_path, this_process

ELSEWHERE = "0123456789ab"

_HOLDER = """
import sys
from pathlib import Path
from bids_mllm.io import owners
from bids_mllm.io.claims import Claims
if sys.argv[3] != "here":
    owners._this_machine = lambda: sys.argv[3]
with Claims(Path(sys.argv[1]), lifetime=float(sys.argv[2])) as claims:
    for line in sys.stdin:
        word, name = line.split()
        print(getattr(claims, word)(name) if word != "held" else sorted(claims.held), flush=True)
"""


class Holder:
    """Another process with claims of its own, that does what it is told."""

    def __init__(self, store, *, lifetime=60.0, machine="here"):
        words = [sys.executable, "-c", _HOLDER, str(store), str(lifetime), machine]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, word, name="x"):
        self.process.stdin.write(f"{word} {name}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def holder(tmp_path):
    made = []

    def make(**options):
        made.append(Holder(tmp_path, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def files(store):
    return sorted(path.name for path in (store / ".claims").iterdir())


def wait_until(condition, seconds):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"not within {seconds} s"
        time.sleep(0.02)


def test_a_name_is_taken_once_and_free_after_its_release(tmp_path):
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        assert first.take("a-00000", covers=("0" * 64,))
        assert not first.take("a-00000")
        assert not second.take("a-00000")
        assert second.take("a-00001")
        assert (first.held, second.held) == ({"a-00000"}, {"a-00001"})
        assert not second.release("a-00000")
        assert first.release("a-00000")
        assert first.held == set()
        assert second.take("a-00000")
    assert files(tmp_path) == []


def test_a_claim_says_who_holds_it(tmp_path):
    with Claims(tmp_path, lifetime=7) as claims:
        claims.take("a", covers=("12", "34"))
        content = json.loads((tmp_path / ".claims" / "a.json").read_text())
        start = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        token = content.pop("token")
    assert len(token) == 32
    assert content == {
        "name": "a",
        "owner": {"machine": this_process().machine, "pid": os.getpid(), "started": start},
        "lifetime": 7,
        "covers": ["12", "34"],
    }


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".a", "a b", "a" * 201])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with Claims(tmp_path) as claims, pytest.raises(StoreError, match=r"cannot name a claim"):
        claims.take(name)


def test_everything_is_released_after_an_error(tmp_path):
    def fail() -> None:
        with Claims(tmp_path) as claims:
            claims.take("a")
            claims.take("b")
            raise ValueError("stop")

    with pytest.raises(ValueError, match=r"stop"):
        fail()
    assert files(tmp_path) == []


def _take_all(store, number, barrier):
    """Take each name if it is free; where it is got, make sure for a moment that nobody else is in."""
    inside, done = store / "inside", store / "done"
    claims = Claims(store)  # not entered, which would sweep the dead claims that are to be taken over
    barrier.wait()
    left = [f"n{n}" for n in range(200)]
    while left:
        for name in list(left):
            if (done / name).exists():
                left.remove(name)
            elif claims.take(name):
                os.close(os.open(inside / name, os.O_CREAT | os.O_EXCL))
                with (done / name).open("a") as file:
                    file.write(f"{number}\n")
                (inside / name).unlink()
                assert claims.release(name)
                left.remove(name)
    claims.close()


def test_processes_never_hold_one_of_200_names_at_once_and_share_them(tmp_path):
    """Half of the names begin with the claim of a process that is dead, so that they are taken over."""
    for folder in ("inside", "done", ".claims"):
        (tmp_path / folder).mkdir()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for number in range(0, 200, 2):
        owner = Owner(this_process().machine, dead.pid, 1)
        content = Claim(f"n{number}", owner, f"old{number}", 60.0).to_bytes()
        (tmp_path / ".claims" / f"n{number}.json").write_bytes(content)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [context.Process(target=_take_all, args=(tmp_path, number, barrier)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    takers = [(tmp_path / "done" / f"n{n}").read_text().split() for n in range(200)]
    # A name may be taken again between its release and a look at what is done; never by two at once.
    assert {number for taken in takers for number in taken} == {"0", "1", "2"}
    assert all(takers)
    assert files(tmp_path) == []


def _take_over_again_and_again(store, number, barrier):
    """Sweeping is left out, so that the dead claim of each round is there for `take`."""
    for round_ in range(60):
        claims = Claims(store)
        barrier.wait()
        got = claims.take(f"r{round_}")
        (store / f"round-{round_}-{number}").write_text(str(got))
        barrier.wait()
        claims.close()


def test_a_dead_claim_is_taken_over_by_exactly_one_of_those_that_see_it(tmp_path):
    (tmp_path / ".claims").mkdir()
    for round_ in range(60):
        path = tmp_path / ".claims" / f"r{round_}.json"
        path.write_bytes(Claim(f"r{round_}", Owner(ELSEWHERE, 1, 1), "old", 1.0).to_bytes())
        os.utime(path, (time.time() - 100, time.time() - 100))
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    workers = [context.Process(target=_take_over_again_and_again, args=(tmp_path, n, barrier)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    for round_ in range(60):
        got = [(tmp_path / f"round-{round_}-{number}").read_text() for number in range(3)]
        assert sorted(got) == ["False", "False", "True"]


def test_a_killed_holder_on_this_machine_loses_its_claim_at_once(tmp_path, holder):
    other = holder(lifetime=3600)
    assert other.ask("take", "a") == "True"
    with Claims(tmp_path, lifetime=3600) as claims:
        assert not claims.take("a")
        other.kill()
        assert claims.take("a")


def test_a_zombie_counts_as_dead(tmp_path, holder):
    other = holder(lifetime=3600)
    other.ask("take", "a")
    with Claims(tmp_path) as claims:
        other.process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, other.process.pid, os.WEXITED | os.WNOWAIT)
        assert claims.take("a")


def test_a_process_number_that_was_used_again_is_not_the_holder(tmp_path):
    (tmp_path / ".claims").mkdir()
    here = this_process()
    content = Claim("a", dataclasses.replace(here, started=here.started - 1), "old", 3600.0).to_bytes()
    (tmp_path / ".claims" / "a.json").write_bytes(content)
    claims = Claims(tmp_path)
    assert claims.take("a")
    claims.close()


def test_a_killed_holder_elsewhere_loses_its_claim_after_its_lifetime(tmp_path, holder):
    other = holder(lifetime=1.0, machine=ELSEWHERE)
    assert other.ask("take", "a") == "True"
    with Claims(tmp_path, lifetime=1.0) as claims:
        time.sleep(1.5)
        assert not claims.take("a"), "a living holder renews"
        other.kill()
        killed = time.monotonic()
        assert not claims.take("a")
        wait_until(lambda: claims.take("a"), 3.0)
        # The last renewal was at most a quarter of the lifetime before.
        assert time.monotonic() - killed >= 0.7


def test_a_suspended_holder_loses_its_claim_and_notices(tmp_path, holder):
    other = holder(lifetime=0.8, machine=ELSEWHERE)
    for name in ("a", "b"):
        other.ask("take", name)
    with Claims(tmp_path, lifetime=0.8) as claims:
        other.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: claims.take("a"), 3.0)
        token = json.loads((tmp_path / ".claims/a.json").read_text())["token"]
        other.process.send_signal(signal.SIGCONT)
        assert other.ask("release", "a") == "False"
        assert other.ask("release", "b") == "True"
        assert json.loads((tmp_path / ".claims/a.json").read_text())["token"] == token
        assert claims.release("a")


def test_releasing_does_not_remove_the_claim_of_who_took_over(tmp_path):
    (tmp_path / ".claims").mkdir()
    sleeper = Claims(tmp_path)  # not entered: it does not renew, so that only the release can notice
    assert sleeper.take("a")
    other = Claim("a", Owner(ELSEWHERE, 1, 1), "new", 60.0).to_bytes()
    (tmp_path / ".claims/a.json").write_bytes(other)
    assert not sleeper.release("a")
    assert (tmp_path / ".claims/a.json").read_bytes() == other
    sleeper.close()
    assert files(tmp_path) == ["a.json"]


def test_a_suspended_holder_forgets_what_it_lost_at_its_next_renewal(tmp_path, holder):
    other = holder(lifetime=0.8, machine=ELSEWHERE)
    other.ask("take", "a")
    with Claims(tmp_path, lifetime=0.8) as claims:
        other.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: claims.take("a"), 3.0)
        other.process.send_signal(signal.SIGCONT)
        wait_until(lambda: other.ask("held") == "[]", 3.0)
        time.sleep(1.0)
        assert claims.release("a")


def test_the_age_is_measured_by_the_clock_of_the_file_system(tmp_path, monkeypatch):
    """A host whose own clock is a day ahead or behind judges as any other."""
    (tmp_path / ".claims").mkdir()
    path = tmp_path / ".claims" / "a.json"
    path.write_bytes(Claim("a", Owner(ELSEWHERE, 1, 1), "old", 60.0).to_bytes())
    claims = Claims(tmp_path)
    real = time.time
    for shift in (86400, -86400):
        monkeypatch.setattr(time, "time", lambda shift=shift: real() + shift)
        assert not claims.take("a")
    os.utime(path, (real() - 61, real() - 61))
    assert claims.take("a")
    claims.close()


def test_a_claim_that_is_not_whole_lives_for_the_lifetime(tmp_path):
    (tmp_path / ".claims").mkdir()
    path = tmp_path / ".claims" / "a.json"
    path.write_text("")
    with Claims(tmp_path, lifetime=60) as claims:
        assert not claims.take("a")
        os.utime(path, (time.time() - 61, time.time() - 61))
        assert claims.take("a")


def _die_when_the_content_is_made(store: Path, what: str) -> None:
    """Take a name, or give one free again, and be killed when the content of the n-th file is to be written."""
    contents = Claim.to_bytes
    left = {"claim": 1, "lock": 2}[what]

    def deadly(claim: Claim) -> bytes:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return contents(claim)

    Claim.to_bytes = deadly
    claims = Claims(store)
    claims.__enter__()
    claims.take("x")
    claims.release("x")


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("what", ["claim", "lock"])
def test_who_dies_while_it_writes_a_claim_or_a_lock_keeps_nobody_waiting(tmp_path, what):
    process = multiprocessing.get_context("fork").Process(target=_die_when_the_content_is_made, args=(tmp_path, what))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / ".claims" / "x.json").exists() == (what == "lock")
    with Claims(tmp_path) as claims:
        assert claims.take("x")
        assert claims.release("x")
    assert list((tmp_path / ".claims").iterdir()) == []


def test_claims_are_made_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refused(*_arguments, **_named):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)
    with Claims(tmp_path) as one, Claims(tmp_path) as other:
        assert one.take("x")
        assert not other.take("x")
        assert one.release("x")
        assert other.take("x")
    assert list((tmp_path / ".claims").iterdir()) == []


def test_opening_sweeps_what_the_dead_left_and_nothing_else(tmp_path, holder):
    living, killed = holder(lifetime=3600), holder(lifetime=3600)
    living.ask("take", "living")
    killed.ask("take", "killed")
    folder = tmp_path / ".claims"
    dead = json.loads((folder / "killed.json").read_text())["owner"]
    killed.kill()
    (folder / "z.lock").write_bytes(Claim("z", Owner(**dead), "t", 60.0).to_bytes())
    (folder / "y.lock").write_bytes(Claim("y", this_process(), "t", 60.0).to_bytes())
    clock = folder / f".tmp-{dead['machine']}-{dead['pid']}-{dead['started']}-01234567~clock"
    clock.write_text("")
    with Claims(tmp_path):
        left = [name for name in files(tmp_path) if not name.startswith(".tmp-")]
        assert left == ["living.json", "y.lock"]
        assert not clock.exists()


def test_the_lock_of_a_dead_process_does_not_stop_a_take_over(tmp_path, holder):
    other = holder(lifetime=3600)
    other.ask("take", "a")
    owner = Owner(**json.loads((tmp_path / ".claims/a.json").read_text())["owner"])
    claims = Claims(tmp_path)
    other.kill()
    (tmp_path / ".claims/a.lock").write_bytes(Claim("a", this_process(), "t", 60.0).to_bytes())
    assert not claims.take("a"), "a living process is about to take it over"
    (tmp_path / ".claims/a.lock").write_bytes(Claim("a", owner, "t", 60.0).to_bytes())
    assert claims.take("a")
    assert not (tmp_path / ".claims/a.lock").exists()
    claims.close()


def test_a_lock_that_was_broken_and_taken_meanwhile_is_put_back(tmp_path, monkeypatch):
    (tmp_path / ".claims").mkdir()
    folder = ClaimsFolder(tmp_path)
    lock = tmp_path / ".claims/a.lock"
    new = Claim("a", this_process(), "new", 60.0)
    lock.write_bytes(new.to_bytes())
    old = Claim("a", Owner(ELSEWHERE, 1, 1), "old", 60.0)
    monkeypatch.setattr(folder, "state", lambda path: ("dead", old))
    assert not folder._break_lock(lock)
    assert lock.read_bytes() == new.to_bytes()
    assert files(tmp_path) == ["a.lock"]


def test_a_fork_of_the_holder_gives_nothing_free(tmp_path):
    with Claims(tmp_path) as claims:
        claims.take("a")
        claims._pid += 1  # what a fork sees: the process is another than the one that made the claims
        claims.close()
        assert not claims.release("a")
        assert files(tmp_path) == ["a.json"]
        claims._pid -= 1


def test_owners_of_other_machines_are_never_known_to_be_gone():
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    assert is_gone(Owner(this_process().machine, dead.pid, 1))
    assert not is_gone(Owner(ELSEWHERE, dead.pid, 1))
    assert not is_gone(Owner(UNKNOWN_MACHINE, dead.pid, 1))
    assert not is_gone(this_process())
    assert not is_gone(Owner(this_process().machine, 0, 1))


def test_a_process_of_another_user_is_told_by_its_start(monkeypatch):
    """Sending it a signal is not permitted; without /proc it counts as living."""

    def refuse(pid, number):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", refuse)
    here = this_process()
    assert not is_gone(here)
    assert is_gone(dataclasses.replace(here, started=here.started + 1))
    monkeypatch.setattr(owners, "_process_state", lambda pid: None)
    assert not is_gone(dataclasses.replace(here, started=here.started + 1))


def test_temporary_names_are_unique_and_stay_beside(tmp_path):
    first, second = temporary_path(tmp_path / "a.json"), temporary_path(tmp_path / "a.json")
    assert first != second
    assert first.parent == tmp_path


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"\.claims cannot be written"), Claims(tmp_path / "file"):
        pass


def test_a_read_only_or_full_store_is_one_sentence(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=20", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        with Claims(disk) as claims:
            assert claims.take("a")
            with pytest.raises(OSError, match=r"No space left"):
                (disk / "ballast").write_bytes(bytes(2**20))
            with pytest.raises(StoreError, match=r"The disk that holds .*b.json is full"):
                claims.take("b")
            assert files(disk) == ["a.json"]
            assert claims.held == {"a"}
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with Claims(disk) as claims, pytest.raises(StoreError, match=r"is on a read-only file system"):
            claims.take("c")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
