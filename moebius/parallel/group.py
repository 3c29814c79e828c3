"""Connect the processes that torchrun started, and end them in order.

Everything that concerns the connection is here: its backends, the comparison of the processes at
the start, and what happens when one of them fails. The first rank speaks for all of them; another
one speaks only about an error of its own.
"""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
from torch.distributed import (
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
    Store,  # pyright: ignore[reportPrivateImportUsage]
    rendezvous,  # pyright: ignore[reportPrivateImportUsage]
)

from moebius.errors import ConfigError, Interrupted, MoebiusError, PeerError, one_line
from moebius.parallel.process import Process
from moebius.parallel.ranks import of_all
from moebius.parallel.watch import REASON, TURN_SECONDS, Watch, hanging

NOTICING_SECONDS = 3.0  # until a broken connection is noticed by the thread that listens to it
COMPARING_SECONDS = 5.0  # until an error that all ranks have is known to be rank 0's, too
T = TypeVar("T")
LAST_SECONDS = 60.0  # for rank 0 to write its report before the others end


class Peers:
    """The connection of this process with the others of its run. A single process has none."""

    def __init__(self, process: Process, store: Store | None = None, timeout: float = 0.0):
        self.process = process
        self._store, self._timeout = store, timeout
        self._watch: Watch | None = None
        self._is_announced = False
        if store is not None:
            self._watch = Watch(process.rank, store, timeout)

    def beat(self) -> None:
        """Note that the processes have just agreed on something."""
        if self._watch is not None:
            self._watch.beat()

    def rest(self) -> None:
        """Note that the next agreement may take long, because a checkpoint is written first."""
        if self._watch is not None:
            self._watch.rest()

    def first_before_others(self, work: Callable[[], T]) -> T:
        """Return the result of some work, which the first rank ends before the others begin.

        It may take hours, such as that of preparing a text, which the others then find prepared.
        """
        if self._store is None or self.process.writes:
            result = work()
            if self._store is not None:
                self._store.set("prepared", "")
            return result
        while not self._store.check(["prepared"]):
            # `Store.wait` would keep the watch from the store, and signals from being handled.
            time.sleep(TURN_SECONDS)
        return work()

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Tell the others about an error in the with block as soon as it is raised."""
        try:
            yield
        except BaseException as error:
            self._announce(error)
            raise

    def end(self) -> None:
        """End the connection of a process whose work is done."""
        if self._watch is not None and self._store is not None:
            self._watch.close(in_order=True)
            torch.distributed.destroy_process_group()

    def fail(self, error: BaseException) -> NoReturn:
        """Raise the error that ends this process, or exit if another rank says what is wrong."""
        if self._store is None or self._watch is None:
            raise error
        error = self._explained(error)
        self._announce(error)
        is_shared = not self.process.writes and self._is_of_first(error)
        if is_shared:
            self._wait_for("ended/0", LAST_SECONDS)
            time.sleep(0.5)  # rank 0 still has to print its line
        self._watch.close(in_order=is_shared)
        if self.process.writes:
            with suppress(RuntimeError):
                self._store.set("ended/0", "")
            raise error
        if is_shared or isinstance(error, KeyboardInterrupt):
            sys.exit(getattr(error, "exit_code", 130))
        if not isinstance(error, MoebiusError):
            raise error
        error.args = (f"rank {self.process.rank} on {platform.node()}: {error}", *error.args[1:])
        raise error

    def _explained(self, error: BaseException) -> BaseException:
        """Return the error in this process's words, if it is about the connection."""
        assert self._watch is not None
        if not isinstance(error, RuntimeError) or not _is_of_connection(error):
            return error
        if lost := self._watch.lost(NOTICING_SECONDS):
            return PeerError(lost).with_traceback(error.__traceback__)
        return PeerError(f"{hanging(self._timeout)} ({one_line(error)})")

    def _announce(self, error: BaseException) -> None:
        if self._watch is None or self._store is None or self._is_announced:
            return
        if _is_of_connection(error):
            return
        self._is_announced = True
        self._watch.stop()
        with suppress(RuntimeError):
            self._store.set(f"{REASON}{self.process.rank}", one_line(error))

    def _is_of_first(self, error: BaseException) -> bool:
        """Return whether rank 0 has the same error."""
        if isinstance(error, Interrupted):
            return True  # the ranks have agreed to stop
        if isinstance(error, PeerError) or not isinstance(error, MoebiusError):
            return False
        assert self._store is not None
        if not self._wait_for(f"{REASON}0", COMPARING_SECONDS):
            return False
        return self._store.get(f"{REASON}0").decode() == one_line(error)

    def _wait_for(self, key: str, seconds: float) -> bool:
        assert self._store is not None
        try:
            self._store.wait([key], timedelta(seconds=seconds))
        except RuntimeError:  # not within that time, or the store is gone
            return False
        return True


@contextmanager
def joined(process: Process, timeout: float) -> Iterator[Peers]:
    """Connect this process with the others of its run for the time of the with block.

    timeout: seconds after which a process gives up waiting for another one. Raises PeerError if
    the others do not come or have ended, and ConfigError without the address to meet them at.
    """
    if process.world_size == 1:
        yield Peers(process)
        return
    store = _connected(process, timeout)
    try:
        peers = Peers(process, store, timeout)
    except (OSError, RuntimeError) as error:  # such as a firewall between two machines
        raise PeerError(
            f"rank {process.rank} on {platform.node()}: no connection with the ranks before and "
            f"after it: {one_line(error)}"
        ) from None
    try:
        yield peers
    except BaseException as error:
        peers.fail(error)
    else:
        peers.end()


def check_alike(facts: dict[str, str]) -> None:
    """Raise ConfigError, which names the rank, unless all processes have the same facts.

    facts: values by what they are in words, such as a version or a setting.
    """
    first, *others = of_all(facts | {"host": platform.node()})
    for rank, theirs in enumerate(others, start=1):
        for name in sorted((first.keys() | theirs.keys()) - {"host"}):
            own, other = first.get(name, "none"), theirs.get(name, "none")
            if own != other:
                raise ConfigError(
                    f"rank {rank} on {theirs['host']} has {name}={other}, and rank 0 on "
                    f"{first['host']} has {own}; start all ranks with the same version, "
                    "configuration and text"
                )


def _connected(process: Process, timeout: float) -> Store:
    """Connect the processes and return the store that they share."""
    limit = timedelta(seconds=timeout)
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    has_gpus = torch.cuda.is_available() and torch.distributed.is_nccl_available()
    try:
        meeting = rendezvous("env://", process.rank, process.world_size, timeout=limit)
        store = next(meeting)[0]
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if has_gpus else "gloo",
            store=PrefixStore("torch", store),
            rank=process.rank,
            world_size=process.world_size,
            timeout=limit,
        )
    except ValueError as error:
        raise ConfigError(f"{one_line(error)}; start with torchrun") from None
    except RuntimeError as error:
        raise PeerError(
            f"rank {process.rank}: the {process.world_size} processes did not meet at {place} "
            f"within {timeout:g} s: {one_line(error)}"
        ) from None
    return PrefixStore("moebius", store)


def _is_of_connection(error: BaseException) -> bool:
    """Return whether torch.distributed raised the error. gloo has no class of its own for them."""
    if isinstance(error, torch.distributed.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("gloo" in text or "connection closed" in text)
