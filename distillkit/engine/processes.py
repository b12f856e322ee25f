"""The processes of a job, for short messages among them."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.distributed as dist

from distillkit.parallel.groups import cpu_group

Word = TypeVar("Word")


class Processes:
    """All processes of the job, in a group of its own whose messages go from CPU to CPU: no process waits for its
    device, and a thread of each may use it beside the training. Alone where nothing joins several.

    The group is made by `join` or by the first message, at which all processes have to be at the same time.

    Attributes:
        rank: number of this process, from 0.
        world: how many there are.
    """

    def __init__(self) -> None:
        several = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
        self._group: Any = None

    @property
    def group(self) -> Any:
        """The process group; None for a process alone."""
        if self.world > 1 and self._group is None:
            self._group = cpu_group()
        return self._group

    def join(self) -> None:
        """Make the group, if that was not done yet; called by all."""
        _ = self.group

    def gather(self, word: Word) -> list[Word]:
        """What every process says, in their order; called by all."""
        if self.world == 1:
            return [word]
        words: list[Any] = [None] * self.world
        dist.all_gather_object(words, word, group=self.group)
        return words

    def first(self, word: Word) -> Word:
        """What the first process says; called by all."""
        if self.world == 1:
            return word
        words = [word]
        dist.broadcast_object_list(words, src=0, group=self.group)
        return words[0]
