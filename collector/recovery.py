"""What an earlier collector left on disk: pick it up, and account for what a kill tore.

Numbers that were given and neither settled nor in the spool nor in the journal are in doubt. They enter the
journal as open losses before anything new is numbered; Kafka is asked about them as soon as it answers.
"""

import fcntl
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collector.clock import now_us
from collector.losses import Loss, Losses, Reason, ranges
from collector.sequence import Mark, Sequences, boot_id, marks
from collector.spool import Spool
from schemas.config import Config
from schemas.errors import BpfleetError


@dataclass
class State:
    """Everything a collector keeps on disk, opened."""

    sequences: Sequences
    spool: Spool
    losses: Losses
    killed_since_us: int  # an earlier process of any boot ended without a goodbye, last seen then; 0: none
    lock: Any


def open_state(config: Config, boot: bytes | None = None) -> State:
    """Open the state directory. Raises :class:`BpfleetError`: in use, not writable, full."""
    boot = boot_id() if boot is None else boot
    directory = Path(config.state_dir) / "collector"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = _lock(directory / "lock")
        spool = Spool(directory / "spool", config.collector.spool_mb << 20)
        losses = Losses(directory / "losses.json")
        file = directory / "sequence"
        old_boot, old = marks(file)
        waiting = {(each.boot, each.stream, each.seq) for each in spool.labels()}
        for loss in in_doubt(old_boot, old, waiting, losses.all):
            losses.add(loss)
        sequences = Sequences(file, boot)
    except OSError as error:
        raise BpfleetError(
            f"cannot use state directory {directory}: {error.strerror}; set state_dir or make it writable"
        ) from None
    except ValueError as error:
        raise BpfleetError(
            f"{directory}/losses.json is damaged ({error}); move it away and start again"
        ) from None
    for loss in losses.all:
        if loss.boot == boot.hex():
            sequences.declared(loss.stream, loss.first, loss.last)
    killed = 0 if sequences.was_clean else sequences.was_alive_us
    return State(sequences, spool, losses, killed, lock)


def _lock(file: Path) -> Any:
    handle = file.open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.seek(0)
        raise BpfleetError(
            f"a collector already runs with this state directory (process {handle.read().strip() or '?'}); "
            "stop it, or set another state_dir"
        ) from None
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle


def in_doubt(
    boot: bytes, old: Iterable[Mark], waiting: set[tuple[bytes, str, int]], known: Iterable[Loss]
) -> Iterator[Loss]:
    """The open losses that follow from what an earlier process left."""
    known = list(known)
    for mark in old:
        listed = {
            number
            for each in known
            if (each.stream, each.boot) == (mark.stream, boot.hex())
            for number in range(each.first, each.last + 1)
        }
        doubtful = (
            number
            for number in range(mark.settled, mark.next)
            if number not in listed and (boot, mark.stream, number) not in waiting
        )
        for first, last in ranges(doubtful):
            yield Loss(
                Reason.KILLED, mark.stream, boot.hex(), first, last, 0, now_us(), True,
                mark.partition, mark.offset, mark.since_us,
            )  # fmt: skip


def resolve(state: State, found: Iterable[Any]) -> None:
    """Enter what Kafka said (collector.kafka.Found) into the journal."""
    for each in found:
        state.losses.replace(each.loss, each.remaining())
