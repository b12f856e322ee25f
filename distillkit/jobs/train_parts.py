"""Training all parts of a pipeline in their order: each in a run folder of its own, on top of those before it."""

from __future__ import annotations

from dataclasses import replace

from distillkit.jobs.context import Context, entered
from distillkit.jobs.teacher_config import NETWORK, PartsConfig, TeacherRunConfig
from distillkit.jobs.train_part import PartTraining, TrainedPart, trained_part
from distillkit.jobs.train_teacher import TeacherTraining, TrainedTeacher, new_teacher
from distillkit.progress import Quiet
from distillkit.runs.folder import CONFIG, RunFolder

Trained = TrainedPart | TrainedTeacher


def trained_by(
    config: TeacherRunConfig | PartsConfig, folder: RunFolder, context: Context
) -> TeacherTraining | PartTraining | PartsTraining:
    """The job of a configuration.

    Raises:
        UsageError, DistillkitError: when there are no images, or they do not fit.
    """
    if isinstance(config, PartsConfig):
        parts = PartsTraining(config, folder, context)
        parts.check()
        return parts
    if config.part == NETWORK:
        return TeacherTraining(config, *new_teacher(config, context.device, context.reporter.say), folder, context)
    return PartTraining(config, folder, context)


class PartsTraining:
    """One training of all parts in its folder: RUN/autoencoder, RUN/text-encoder, RUN/network are whole runs.

    Args:
        folder: locked and begun by the caller.
    """

    def __init__(self, config: PartsConfig, folder: RunFolder, context: Context) -> None:
        self.config, self.folder, self.context = config, folder, context

    def check(self) -> None:
        """Refuse what any part that is not trained yet would be refused for, before days are spent on those before it.

        Raises:
            UsageError, DistillkitError: as `trained_by`.
        """
        silent, before = replace(self.context, reporter=Quiet()), None
        for part, config in self.config.parts.items():
            if done := self._trained(part):
                before = done
            else:
                trained_by(_on_top_of(before, config), self.part_folder(part), silent)

    @property
    def inputs(self) -> dict[str, str]:
        """Each part's run compares its own."""
        return {}

    def run(self, *, resume: bool = False) -> list[Trained]:
        """Train what is not trained yet; what each part became, in their order.

        Raises:
            Interrupted: after a signal, with everything saved.
        """
        made: list[Trained] = []
        for part, config in self.config.parts.items():
            self.context.reporter.say(f"part: {part}")
            made.append(self._one(part, config, made[-1] if made else None))
        return made

    def _one(self, part: str, config: TeacherRunConfig, before: Trained | None) -> Trained:
        context, folder = self.context, self.part_folder(part)
        begun, done = (folder / CONFIG).is_file(), self._trained(part)
        context.accelerator.wait_for_everyone()
        if done:
            context.reporter.say(f"trained before: {done.summary}")
            return done
        # The part is trained on top of the one before. Its folder keeps the configuration without that one's place,
        # which may be moved, and what it was.
        work = trained_by(_on_top_of(before, config), folder, context)
        assert not isinstance(work, PartsTraining)
        inputs = work.inputs if before is None else {**work.inputs, "on top of": f"sha256 {before.weights_sha256}"}
        with entered(folder, config, context, resume=begun, inputs=inputs):
            return work.run(resume=begun)

    def _trained(self, part: str) -> TrainedPart | None:
        folder = self.part_folder(part)
        begun = part != NETWORK and (folder / CONFIG).is_file()
        return trained_part(folder) if begun and folder.finished else None

    def part_folder(self, part: str) -> RunFolder:
        """The folder of a part, which is gone on with by the command of all."""
        made = RunFolder(self.folder / part, "")
        made.resume_command = self.folder.resume_command
        return made


def _on_top_of(before: Trained | None, config: TeacherRunConfig) -> TeacherRunConfig:
    return config if before is None else config.model_copy(update={"like": str(before.folder)})
