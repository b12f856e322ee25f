"""Sharded tensors to files and back by torch.distributed.checkpoint, which plans who writes and reads what.

Its own storage keeps the plan in a pickle; this one keeps nothing beside safetensors files, whose headers say enough.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from distillkit.engine.processes import Processes
from distillkit.engine.saved import on_cpu
from distillkit.errors import DistillkitError
from distillkit.pieces import Held, Part, Piece
from distillkit.students.checkpoints import file_name

Tensors = Mapping[str, Mapping[str, Tensor]]
"""Group, such as a network's name -> tensors by name."""


def staged(tensors: Tensors, processes: Processes) -> dict[str, dict[str, Part]]:
    """Copies on the CPU of what this process is to write, by the name of the file; called by all processes.

    A piece that several hold is written by the first of them.

    Raises:
        DistillkitError: when it fails on any process, naming that.
    """
    writer, planner = _Staging(), DefaultSavePlanner(
        flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True
    )  # fmt: skip
    with _one_message("copy what is to be saved", processes):
        save(_flat(tensors), storage_writer=writer, planner=planner, process_group=processes.group)
    return writer.files


def read_into(tensors: Tensors, held: Mapping[str, Mapping[str, Held]], processes: Processes) -> None:
    """Fill tensors, sharded ones by their own pieces, from files; called by all processes.

    Args:
        held: what files hold, of at least these names in these shapes.

    Raises:
        DistillkitError: when a file is damaged or cannot be read on any process, naming that.
    """
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _one_message("read a checkpoint", processes):
        load(
            _flat(tensors), storage_reader=_Reading(_flat(held)), planner=planner, process_group=processes.group
        )  # fmt: skip


def _flat(groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{group}/{name}": value for group, inner in groups.items() for name, value in inner.items()}


@contextmanager
def _one_message(what: str, processes: Processes) -> Iterator[None]:
    """What any process raises within a collective of torch's, as one error on all of them."""
    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = min(error.failures.items())
        if rank == processes.rank and isinstance(cause, DistillkitError | MemoryError | torch.OutOfMemoryError):
            raise cause from error
        raise DistillkitError(f"process {rank} of {processes.world} could not {what}: {cause}") from cause


def _is_empty(item: WriteItem) -> bool:
    """Whether a process has nothing of a tensor that others have: more processes than rows."""
    data = item.tensor_data
    return data is not None and 0 in data.chunk.sizes and 0 not in data.size


class _Staging(StorageWriter):
    """Writes into memory, from where a thread writes on.

    Attributes:
        files: what this process holds for each of its files.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Part]] = {}

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Number the files of each group by the processes that have something of it."""
        plans = [replace(plan, items=[item for item in plan.items if not _is_empty(item)]) for plan in plans]
        groups = [{item.index.fqn.partition("/")[0] for item in plan.items} for plan in plans]
        writers = {group: [rank for rank, own in enumerate(groups) if group in own] for own in groups for group in own}
        return [
            replace(
                plan,
                storage_data={
                    group: file_name(group, writers[group].index(rank) + 1, len(writers[group])) for group in own
                },
            )
            for rank, (plan, own) in enumerate(zip(plans, groups, strict=True))
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        for item in plan.items:
            group, _, name = item.index.fqn.partition("/")
            data, tensor = item.tensor_data, planner.resolve_data(item)
            if data is None or not isinstance(tensor, Tensor):
                raise DistillkitError(f"{item.index.fqn} is no tensor, and checkpoints hold nothing else")
            file = self.files.setdefault(plan.storage_data[group], {})
            if name in file:
                raise DistillkitError(f"{item.index.fqn}: a process holds several pieces of it, and one is due")
            file[name] = Part(on_cpu(tensor), tuple(data.chunk.offsets), tuple(data.size))
        return _done([])

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Nothing is on the disk yet."""

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """There is one save for each."""

    def set_up_storage_writer(self, is_coordinator: bool, *arguments: Any, **options: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


class _Reading(StorageReader):
    """Reads from what files hold."""

    def __init__(self, held: Mapping[str, Held]) -> None:
        self.held = held
        self.pieces: dict[MetadataIndex, Piece] = {
            MetadataIndex(name, torch.Size(piece.offset)): piece for name, one in held.items() for piece in one.pieces
        }

    def read_metadata(self, *arguments: Any, **options: Any) -> Metadata:
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=one.dtype),
                    torch.Size(one.shape),
                    [ChunkStorageMetadata(torch.Size(p.offset), torch.Size(p.sizes)) for p in one.pieces],
                )
                for name, one in self.held.items()
            }
        )

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        for item in plan.items:
            piece = self.pieces[MetadataIndex(item.storage_index.fqn, item.storage_index.offset)]
            target = planner.resolve_tensor(item).detach()
            target.copy_(piece.file.read(piece.name, tuple(item.storage_offsets), tuple(item.lengths)))
            planner.commit_tensor(item, target)
        return _done(None)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """There is one load for each."""

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *arguments: Any, **options: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
