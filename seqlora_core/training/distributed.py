"""Several processes that train one concept together, each on its share of every batch.

The only module that knows torch.distributed.  `accelerate launch` and `torchrun` start the processes and tell each its
place by environment variables.  Every process makes the same plan and takes the same steps; they exchange the sums of
losses and gradients, and what the first one has measured before the first step.  The first process alone changes the
bank and reports.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from ..devices import OutOfMemory, resolve_device
from ..errors import Cancelled, EndedTogether, TrainingDiverged, TrainingExploded, UserError, first_line

_START = timedelta(minutes=10)  # until all processes have started
# Others wait for the first process as long as it waits for another training run.  A process that ends closes its
# connections, which ends the waiting of all.
_LONGEST_WAIT = timedelta(days=1)
_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Errors that a process reports in a sentence, so that another one can do it.
_KNOWN = {kind.__name__: kind for kind in (UserError, Cancelled, TrainingDiverged, TrainingExploded, OutOfMemory)}


class _ConnectionLost(UserError):
    """Another process has ended without a word."""


@dataclass(eq=False)
class Processes:
    """The processes of a training run, and the place of this one among them.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes; with one, nothing is exchanged.
        local_rank: number of this process on its machine, which selects its card.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    _group: "dist.ProcessGroup | None" = field(default=None, init=False)
    _cards: "dist.ProcessGroup | None" = field(default=None, init=False)  # of the same, for what lies on cards
    _all_know: bool = field(default=False, init=False)  # that the run has failed

    @classmethod
    def launched(cls) -> "Processes":
        """Those that a launcher has started; this one alone where there is none.

        Raises:
            UserError: the environment variables do not name a place among processes.
        """
        if not all(os.environ.get(name) for name in _VARIABLES):
            return cls()
        rank, count = os.environ["RANK"], os.environ["WORLD_SIZE"]
        local = os.environ.get("LOCAL_RANK", rank)
        if not (rank.isdecimal() and count.isdecimal() and local.isdecimal() and int(rank) < int(count)):
            raise UserError(
                f"The environment has RANK {rank!r}, LOCAL_RANK {local!r} and WORLD_SIZE {count!r}, which is no place "
                "among processes: unset them, or start with torchrun or accelerate launch."
            )
        return cls(int(rank), int(count), int(local))

    @property
    def is_first(self) -> bool:
        """Whether this process changes the bank and reports."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """The device of this process, by the one that the user asked for.

        Raises:
            UserError: it is one that several processes cannot use.
        """
        device = resolve_device(name)
        if self.count == 1 or device.type == "cpu":
            return name
        if device.type != "cuda" or device.index is not None:
            raise UserError(f"{self.count} processes cannot share {device}: leave out --device, or give --device cpu.")
        return str(resolve_device(f"cuda:{self.local_rank}"))

    @contextmanager
    def together(self, device: str) -> Iterator[None]:
        """While the block lasts, the processes are connected; an error in one ends the block in all.

        Args:
            device: what `device` has returned.

        Raises:
            EndedTogether: the block has failed, and the first process raises the error.
        """
        if self.count == 1:
            yield
            return
        with _talking():
            dist.init_process_group("gloo", rank=self.rank, world_size=self.count, timeout=_START)
        try:
            self._group = self._cards = dist.new_group(backend="gloo", timeout=_LONGEST_WAIT)
            if device.startswith("cuda"):
                torch.cuda.set_device(device)
                if dist.is_nccl_available():  # not on Windows
                    self._cards = dist.new_group(backend="nccl")
            yield
            self.agree()
        except Exception as error:
            self._tell(error)
            is_known = type(error) in _KNOWN.values()  # others end in a traceback where they come from
            if is_known and not self.is_first:
                raise EndedTogether from error
            raise
        finally:
            dist.destroy_process_group()

    def agree(self) -> None:
        """Wait until all processes have come here.

        Raises:
            UserError, Cancelled, TrainingDiverged, ...: what another process has failed with.
        """
        if self.count > 1:
            self._exchange(None)

    @contextmanager
    def after_the_first(self) -> Iterator[None]:
        """The first process runs the block before the others do."""
        if not self.is_first:
            self.agree()
        yield
        if self.is_first:
            self.agree()

    def check_same(self, what: str) -> None:
        """Raises UserError where other processes have something else than `what`."""
        if self.count == 1:
            return
        self.agree()
        found: list[str] = [""] * self.count
        with _talking():
            dist.all_gather_object(found, what, group=self._group)
        if len(set(found)) > 1:
            raise UserError(
                "The processes of this training run see different images, checkpoints or concepts: give all of them "
                "the same command, on folders that they share."
            )

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes; all lie on the training device."""
        if self.count == 1:
            return
        together = torch.cat([tensor.flatten() for tensor in tensors])
        self.agree()  # so that no process waits on its card for one that has failed
        with _talking():
            dist.all_reduce(together, group=self._cards if together.is_cuda else self._group)
        for tensor, part in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def take_from_the_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor, on whichever device, by the first process's."""
        if self.count == 1:
            return
        self.agree()
        for tensor in {id(tensor): tensor for tensor in tensors}.values():
            sent = tensor.contiguous()
            with _talking():
                dist.broadcast(sent, 0, group=self._cards if sent.is_cuda else self._group)
            tensor.copy_(sent)

    def _tell(self, error: Exception) -> None:
        """Let the others know that this process has failed, unless it is they who have."""
        if not self._all_know:
            with suppress(Exception):
                self._exchange(error)

    def _exchange(self, error: Exception | None) -> None:
        failed = torch.tensor([int(error is not None)])
        try:
            with _talking():
                dist.all_reduce(failed, group=self._group)
                if not failed:
                    return
                self._all_know = True
                errors: list[tuple[str, str] | None] = [None] * self.count
                told = None if error is None else (type(error).__name__, str(error))
                dist.all_gather_object(errors, told, group=self._group)
        except _ConnectionLost:
            self._all_know = True
            raise
        rank, (kind, text) = next((rank, found) for rank, found in enumerate(errors) if found is not None)
        if kind in _KNOWN:
            raise _KNOWN[kind](text)
        raise UserError(f"Process {rank + 1} of {self.count} has failed ({kind}: {text}): see its traceback.")


ALONE = Processes()


@contextmanager
def _talking() -> Iterator[None]:
    """Raises _ConnectionLost where an exchange fails, as it does when another process has ended."""
    try:
        yield
    except RuntimeError as error:
        raise _ConnectionLost(
            f"Another process of this training run cannot be reached ({first_line(error)}): see its output, and "
            "start the command again with --resume."
        ) from error
