"""What two processes do in a test: a training with dropout, resumed, whose tracker is closed. Run by torchrun."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from torch import nn

from distillkit import Denoiser, Objective, Points, Recipe, Samples, StudentGenerator, Teacher, TeacherSpec
from distillkit.diffusion import EDMSchedule
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.config import TrainingConfig
from distillkit.engine.interrupt import Agreement
from distillkit.engine.metrics import MetricsFile
from distillkit.engine.outputs import Evaluation, Outputs
from distillkit.engine.processes import Processes
from distillkit.engine.trackers import Trackers
from distillkit.engine.trainer import Trainer
from distillkit.progress import Quiet

LIMIT = timedelta(hours=2)


class Kept:
    """A tracker that counts how often it is closed."""

    def __init__(self):
        self.finished = 0

    def log(self, values, images):
        pass

    def close(self):
        self.finished += 1


class Dropping(Denoiser):
    def __init__(self):
        super().__init__()
        self.schedule, self.net = EDMSchedule(), nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, x, t, condition):
        return self.net(x)


class Toy(Objective):
    needs = (Samples,)

    def __call__(self, step):
        return step.samples.square().mean()


def trainer(accelerator):
    torch.manual_seed(0)
    teacher = Teacher(Dropping(), TeacherSpec(name="toy", shape=(2,)), codec=Points())
    config = TrainingConfig(duration=24, batch=4, lr=1e-2, evaluate_every=8, checkpoint_every=24)
    recipe = Recipe(StudentGenerator.from_teacher(teacher), [Toy()])
    made = Trainer(recipe, teacher, config, accelerator=accelerator, seed=0)
    made.student.train()
    return made


def outputs(accelerator, folder, trackers):
    return Outputs(
        Checkpoints(folder / "checkpoints"), MetricsFile(folder / "metrics.jsonl"), trackers, Quiet(),
        main=accelerator.is_main_process,
        evaluate=lambda student: Evaluation("FD", float(student.denoiser.net[0].weight[0, 0].abs()), None, 2),
    )  # fmt: skip


def main():
    tracker = Kept()
    asked = InitProcessGroupKwargs(timeout=LIMIT)
    accelerator, folder = Accelerator(cpu=True, kwargs_handlers=[asked]), Path(sys.argv[1])
    trackers = Trackers(tracker, accelerator=accelerator)
    whole, resumed = trainer(accelerator), trainer(accelerator)
    written = outputs(accelerator, folder, trackers)
    whole.run(written)
    resumed.restore(written.checkpoints.load(4))
    resumed.run(written)
    pairs = zip(whole.student.parameters(), resumed.student.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "a resumed run differs"
    assert whole.selection == resumed.selection
    draws = accelerator.gather(torch.rand(1))
    assert draws[0] != draws[1], "both processes draw the same"
    agreed = Agreement(accelerator)
    assert agreed(lambda: accelerator.process_index == 1), "what one process is asked, all hear in the same step"
    assert not agreed(lambda: False)
    group = Processes().group
    limit = group._get_backend(torch.device("cpu")).options._timeout
    assert limit == LIMIT, "short messages are not waited for as long as the job allows"
    trackers.close()
    trackers.close()
    assert tracker.finished == int(accelerator.is_main_process)
    assert torch.distributed.is_initialized(), "the group of processes is gone"
    assert accelerator.reduce(torch.ones(()), "sum").item() == 2
    sys.stdout.write(f"done:{accelerator.process_index}\n")


main()
