"""What every training job does with the engine: train or continue, stop at a signal, and measure on the way."""

from __future__ import annotations

import socket

from distillkit.data.decoding import Damaged, Unfit
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.config import TrainingConfig
from distillkit.engine.loop import Loop, Stopped
from distillkit.engine.networks import own_bytes
from distillkit.engine.outputs import Evaluation, Outputs
from distillkit.errors import DistillkitError, UsageError, is_out_of_memory
from distillkit.evaluation.generator import Generator
from distillkit.evaluation.measure import Measure
from distillkit.evaluation.pipeline import measure
from distillkit.evaluation.record import Record, Selection
from distillkit.files import require_space
from distillkit.jobs.context import Context
from distillkit.pieces import Held
from distillkit.runs.folder import RunFolder
from distillkit.students.checkpoints import STATE, held_weights, read_state


def train(trainer: Loop, outputs: Outputs, folder: RunFolder, context: Context, *, resume: bool) -> None:
    """Train to the end, from the newest checkpoint where `resume`.

    Raises:
        Interrupted: after a signal, with everything saved.
        DistillkitError: where the disk has no room for the checkpoints; before the first step.
        Unfit, UsageError: for an image that cannot be used, after saving.
    """

    def asked() -> bool:
        context.progress.mark(trainer.step)
        return bool(context.stop)

    try:
        if context.main:
            one = trainer.networks.checkpoint_bytes(trainer.config)
            require_checkpoint_space(folder, trainer.config, one, snapshot_bytes(trainer))
        if resume:
            trainer.resume(outputs)
        trainer.run(outputs, should_stop=asked)
    except (Unfit, UsageError) as error:
        # One image among many: what was trained before it was met is not lost. Other processes wait in the middle of
        # the step, so that several cannot save.
        if trainer.accelerator.num_processes > 1 or not trainer.step:
            raise
        if trainer.step not in outputs.checkpoints.steps:
            trainer.save(outputs)
            outputs.checkpoints.wait()
        go_on = f"{folder.resume_command} --skip-damaged 10" if isinstance(error, Damaged) else folder.resume_command
        raise type(error)(f"{error}\nSaved at step {trainer.step:,}. Continue with: {go_on}") from error
    except Stopped as stopped:
        raise context.interrupted(f"stopped and saved at step {stopped.step:,}") from stopped
    except (MemoryError, RuntimeError, DistillkitError) as error:
        cause = error if is_out_of_memory(error) else error.__cause__
        if not is_out_of_memory(cause):
            raise
        in_pass = trainer.config.batch_per_device or -(-trainer.config.batch // context.world)
        held = trainer.networks.held(trainer.config)
        who = f"process {context.rank} of {context.world} (on {socket.gethostname()}): " if context.world > 1 else ""
        raise DistillkitError(
            f"{who}out of memory at step {trainer.step + 1:,}. What is held: {held}; and what a pass of "
            f"{in_pass:,} samples computes ({error}). Continue with: {folder.resume_command}"
        ) from cause


def weights_at(checkpoints: Checkpoints, step: int) -> dict[str, Held]:
    """The weights of the moving average of a step by the names of its denoiser, where its checkpoint holds them: to be
    written tensor by tensor, whatever processes they are spread over.

    Raises:
        DistillkitError: when the checkpoint is damaged.
    """
    folder = checkpoints.path(step)
    return held_weights(folder, "average", read_state(folder / STATE))[0]


def snapshot_bytes(trainer: Loop) -> int:
    """Of all snapshots of averages that a training keeps."""
    return trainer.config.snapshots * own_bytes(trainer.ema)


def require_checkpoint_space(folder: RunFolder, training: TrainingConfig, one: int, snapshots: int) -> None:
    """Refuse a training whose checkpoints and snapshots the disk cannot hold.

    Args:
        one: bytes of a checkpoint. snapshots: bytes of all snapshots of averages.

    Raises:
        DistillkitError: naming the needed and the free space.
    """
    copies = training.checkpoint_copies
    what = f"{copies} checkpoints" + (f" and {training.snapshots:,} snapshots of averages" if snapshots else "")
    require_space(folder.path, copies * one + snapshots, what)


def measured(
    generator: Generator, how: Measure, context: Context, *, batch: int | None, title: str = "",
    selection: Selection | None = None,
) -> Record:  # fmt: skip
    """A generator's record, on every process.

    Args:
        title: of the progress; none is shown without, as while the training's own is on the screen.
        selection: how the generator was chosen among others.

    Raises:
        Interrupted: after a signal.
    """
    return measure(
        generator, how, device=context.device, batch=batch, rank=context.rank, world=context.world,
        reporter=context.reporter if title else None, title=title, stop=context.stopped, selection=selection,
    )  # fmt: skip


def evaluation_of(record: Record) -> Evaluation:
    """A record's first figure as the engine logs it."""
    figure = record.figures[record.label]
    return Evaluation(record.label, figure.value, figure.standard_error, record.protocol.samples.count, record.nfe)
