"""Claims: how jobs on one or several hosts divide the work on a shared feature store.

A claim is a small file ``STORE/.claims/NAME.json``, made by linking a written one to a name that nothing has (where
there are no hard links, with O_EXCL), which is atomic on shared file systems too (file locks are not). Its holder
renews the file's time; a claim that was not renewed for its lifetime is dead, by the clock of the file system, since
those of hosts differ. A claim whose process is known to have ended is dead at once.

A dead claim is replaced, and an own one removed, only by who holds ``NAME.lock``, made in the same way and held for an
instant, and only after looking once more. A holder that slept so long that its claim was taken over learns it when it
releases; what both write is the same and whole, so that costs time and nothing else.
"""

import contextlib
import errno
import json
import os
import re
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from bids_mllm.exceptions import StoreError
from bids_mllm.io.owners import Owner, is_gone, remove_orphans, temporary_path, this_process, write_error

CLAIMS_FOLDER = ".claims"
LIFETIME = 90.0
#: Renewals in a lifetime: two may be missed, as when a shared file system hangs for a while.
RENEWALS = 4
#: Seconds to wait for a lock, which others hold for an instant.
LOCK_SECONDS = 2.0
#: What file systems answer that have no hard links, or not of this file.
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")


@dataclass(frozen=True)
class Claim:
    """What a claim file says.

    Attributes
    ----------
    name
        What is claimed.
    owner
        The process that holds it.
    token
        A text that no other claim has.
    lifetime
        Seconds without renewal after which it is dead.
    covers
        Digests of the entries that the holder writes to.
    """

    name: str
    owner: Owner
    token: str
    lifetime: float
    covers: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """Return the content of the file."""
        return (json.dumps(asdict(self), sort_keys=True) + "\n").encode()


def _parse(content: bytes) -> Claim | None:
    """Return the claim, or None where the file is not whole: its maker may be between making and writing it."""
    try:
        fields = json.loads(content)
        owner = Owner(str(fields["owner"]["machine"]), int(fields["owner"]["pid"]), int(fields["owner"]["started"]))
        covers = tuple(map(str, fields["covers"]))
        return Claim(str(fields["name"]), owner, str(fields["token"]), float(fields["lifetime"]), covers)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


class ClaimsFolder:
    """The folder of the claims of one store, as seen by one process.

    Parameters
    ----------
    store
        Folder of the feature store.
    lifetime
        Seconds after which a claim that cannot be read counts as dead.
    """

    def __init__(self, store: Path, lifetime: float = LIFETIME) -> None:
        self.path = store / CLAIMS_FOLDER
        self.lifetime = lifetime
        self._clock = temporary_path(self.path / "clock")

    def file(self, name: str) -> Path:
        """Return the file of a claim."""
        if not _NAME.fullmatch(name):
            raise StoreError(f"{name!r} cannot name a claim; use letters, digits and . _ + - and at most 200 of them.")
        return self.path / f"{name}.json"

    def now(self) -> float:
        """Seconds on the clock of the file system: the time that it gives to a file touched now."""
        self._clock.touch()
        return self._clock.stat().st_mtime

    def close(self) -> None:
        """Remove the file by which the clock was read."""
        with contextlib.suppress(OSError):
            self._clock.unlink(missing_ok=True)

    def state(self, path: Path) -> tuple[Literal["absent", "live", "dead"], Claim | None]:
        """Judge a claim or a lock, and return what it says where it can be read."""
        try:
            with path.open("rb") as file:
                content, renewed = file.read(), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return "absent", None
        claim = _parse(content)
        if claim is not None and is_gone(claim.owner):
            return "dead", claim
        lifetime = self.lifetime if claim is None else claim.lifetime
        return ("dead" if self.now() - renewed > lifetime else "live"), claim

    def create(self, path: Path, claim: Claim) -> bool:
        """Make a claim file where there is none, at once with its content; return whether it was made.

        One without content could not be told from one that is being written: if its maker dies in between, everyone
        would wait for its lifetime.
        """
        if path.exists():
            return False
        scratch = temporary_path(path)
        try:
            scratch.write_bytes(claim.to_bytes())
            try:
                os.link(scratch, path)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                return self._create_in_steps(path, claim)
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
        return True

    def _create_in_steps(self, path: Path, claim: Claim) -> bool:
        """Make a claim file on a file system without hard links."""
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return False
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(claim.to_bytes())
        except OSError:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        return True

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: float = 0.0) -> Iterator[bool]:
        """Hold the lock of a name; gives whether it was got within `wait` seconds."""
        path = self.path / f"{name}.lock"
        lock = Claim(name, this_process(), uuid.uuid4().hex, self.lifetime)
        until = time.monotonic() + wait
        while not (got := self.create(path, lock) or (self._break_lock(path) and self.create(path, lock))):
            if time.monotonic() >= until:
                break
            time.sleep(0.01)
        try:
            yield got
        finally:
            if got:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _break_lock(self, path: Path) -> bool:
        """Remove the lock of a process that died while it held it; only one of several can."""
        state, seen = self.state(path)
        if state != "dead":
            return state == "absent"
        grave = temporary_path(path)
        try:
            path.rename(grave)
        except FileNotFoundError:
            return False
        if _parse(grave.read_bytes()) != seen:
            grave.rename(path)  # another broke the dead one before and holds this one
            return False
        grave.unlink()
        return True

    def take_over(self, name: str, claim: Claim) -> bool:
        """Put `claim` in the place of a dead one, without a moment in which there is none."""
        path = self.file(name)
        with self.locked(name) as got:
            if not got:
                return False
            state, _ = self.state(path)
            if state != "dead":
                return state == "absent" and self.create(path, claim)
            scratch = temporary_path(path)
            try:
                scratch.write_bytes(claim.to_bytes())
                scratch.replace(path)
            finally:
                with contextlib.suppress(OSError):
                    scratch.unlink(missing_ok=True)
            return True

    def remove(self, name: str, token: str) -> bool:
        """Remove the claim that has this token; return whether it was there."""
        path = self.file(name)
        with self.locked(name, wait=LOCK_SECONDS) as got:
            if not got or not self.holds(name, token):
                return False
            path.unlink()
            return True

    def remove_dead(self, name: str) -> None:
        """Remove a claim if it is dead still."""
        with self.locked(name) as got:
            if got and self.state(self.file(name))[0] == "dead":
                self.file(name).unlink()

    def holds(self, name: str, token: str) -> bool:
        """Whether the claim of this name has this token."""
        try:
            claim = _parse(self.file(name).read_bytes())
        except FileNotFoundError:
            return False
        return claim is not None and claim.token == token

    def names(self) -> list[str]:
        """Names of all claims, dead ones too."""
        try:
            return sorted(item.name.removesuffix(".json") for item in os.scandir(self.path) if _is_claim(item.name))
        except FileNotFoundError:
            return []

    def dead(self) -> list[str]:
        """Names of the claims that no living process holds."""
        return [name for name in self.names() if self.state(self.file(name))[0] == "dead"]

    def live(self) -> list[Claim | None]:
        """Claims of living processes; None for one that cannot be read."""
        states = [self.state(self.file(name)) for name in self.names()]
        return [claim for state, claim in states if state == "live"]

    def sweep(self) -> None:
        """Remove dead claims and what dead processes left beside them, where that is allowed."""
        with contextlib.suppress(OSError):
            for name in self.dead():
                self.remove_dead(name)
            for lock in sorted(self.path.glob("*.lock")):
                self._break_lock(lock)
        remove_orphans(self.path)


def _is_claim(name: str) -> bool:
    return name.endswith(".json") and _NAME.fullmatch(name.removesuffix(".json")) is not None


class Claims:
    """The claims of one process on the work of a store; a context manager that renews and releases them.

    Parameters
    ----------
    folder
        Folder of the feature store.
    lifetime
        Seconds after which another host takes a claim over that was not renewed.

    Examples
    --------
    >>> with Claims(store) as claims:  # doctest: +SKIP
    ...     if claims.take(name, covers=digests):
    ...         try:
    ...             work()
    ...         finally:
    ...             claims.release(name)
    """

    def __init__(self, folder: Path, *, lifetime: float = LIFETIME) -> None:
        self._folder = ClaimsFolder(folder, lifetime)
        self._lifetime = lifetime
        self._tokens: dict[str, str] = {}
        self._mutex = threading.Lock()
        self._stopped = threading.Event()
        self._renewer: threading.Thread | None = None
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        try:
            self._folder.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise write_error(self._folder.path, error) from error
        self._folder.sweep()
        self._renewer = threading.Thread(target=self._keep_renewing, name="claims", daemon=True)
        self._renewer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def held(self) -> frozenset[str]:
        """Names that this process claims, as far as it knows."""
        with self._mutex:
            return frozenset(self._tokens)

    def take(self, name: str, *, covers: Sequence[str] = ()) -> bool:
        """Claim a name; return False at once where a living process, this one included, has it.

        Parameters
        ----------
        name
            What is claimed: letters, digits and ``. _ + -``.
        covers
            Digests of the entries that will be written to, which `bids-mllm-features gc` then leaves alone.

        Raises
        ------
        StoreError
            When the folder of the claims cannot be written.
        """
        if name in self.held:
            return False
        claim = Claim(name, this_process(), uuid.uuid4().hex, self._lifetime, tuple(covers))
        path = self._folder.file(name)
        try:
            taken = self._folder.create(path, claim)
            if not taken:
                state, _ = self._folder.state(path)
                taken = state != "live" and self._folder.take_over(name, claim)
        except OSError as error:
            raise write_error(path, error) from error
        if taken:
            with self._mutex:
                self._tokens[name] = claim.token
        return taken

    def is_taken(self, name: str) -> bool:
        """Whether a living process, this one included, claims a name.

        Raises
        ------
        StoreError
            When the folder of the claims cannot be read or written.
        """
        path = self._folder.file(name)
        try:
            return self._folder.state(path)[0] == "live"
        except OSError as error:
            raise write_error(path, error) from error

    def release(self, name: str) -> bool:
        """Give a name free; return False where this process did not hold it any more."""
        with self._mutex:
            token = self._tokens.pop(name, None)
        if token is None or os.getpid() != self._pid:
            return False
        # Where the folder cannot be reached any more, the claim dies of itself.
        with contextlib.suppress(OSError):
            return self._folder.remove(name, token)
        return False

    def close(self) -> None:
        """Release all claims, stop renewing, and remove what jobs that died meanwhile have left."""
        if os.getpid() != self._pid:
            return  # a fork of the holder must not give free what the holder works on
        for name in sorted(self.held):
            self.release(name)
        self._stopped.set()
        if self._renewer is not None:
            self._renewer.join()
            self._folder.sweep()
        self._folder.close()

    def _keep_renewing(self) -> None:
        while not self._stopped.wait(self._lifetime / RENEWALS):
            with self._mutex:
                tokens = dict(self._tokens)
            for name, token in tokens.items():
                self._renew(name, token)

    def _renew(self, name: str, token: str) -> None:
        # A disk that does not answer may do so at the next renewal.
        with contextlib.suppress(OSError):
            if self._folder.holds(name, token):
                os.utime(self._folder.file(name))
                return
            with self._mutex:
                if self._tokens.get(name) == token:
                    del self._tokens[name]
