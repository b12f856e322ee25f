"""What three processes do in a test: sharded tensors saved, damaged, read back in other ways. Run as torchrun would."""

import contextlib
import logging
import sys
import threading
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from distillkit import Denoiser, OptimizerConfig
from distillkit.diffusion import EDMSchedule
from distillkit.engine import checkpoint as module
from distillkit.engine.checkpoint import Checkpoints
from distillkit.engine.cost import CostMeter
from distillkit.engine.loop import Stopped
from distillkit.engine.metrics import MetricsFile
from distillkit.engine.optimization import MovingAverage, Updater
from distillkit.engine.outputs import Outputs
from distillkit.engine.state import collect, require_finite, restore
from distillkit.engine.trackers import Trackers
from distillkit.errors import DistillkitError
from distillkit.progress import Quiet
from distillkit_dmd.method import DMD
from tests.parallel.small import ACCELERATOR, RANK, strategy, trained, trainer_of, whole_weights
from tests.parallel.small import same as same_numbers

FOLDER = Path(sys.argv[1])
MESH = init_device_mesh("cpu", (3,))
ROWS, COLUMNS, WHOLE = [Shard(0)], [Shard(1)], [Replicate()]
VALUES = {"channels_last": False, "selection": {"best_step": None, "best_value": None, "evaluated": 0},
          "to_evaluate": False, "updaters": {"student": {"scaler": {}}}, "cost": {}}  # fmt: skip


def network():
    """Rows that three processes share unevenly, or of which one has none; a buffer and a scalar that all hold."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2, bias=False))
    net.scale = nn.Parameter(torch.tensor(0.5))
    return net


class Training:
    """A network and its moving average, sharded, and an optimiser that has moments."""

    def __init__(self, placements, seed=0):
        self.net, self.average = network(), network()
        for net in (self.net, self.average):
            for child in net.modules():
                for name, parameter in list(child.named_parameters(recurse=False)):
                    own = (
                        placements if parameter.ndim == 2 else ROWS if parameter.ndim and placements != WHOLE else WHOLE
                    )
                    setattr(child, name, nn.Parameter(distribute_tensor(parameter.data, MESH, own)))
        self.updater = Updater(list(self.net.parameters()), OptimizerConfig(lr=0.1), ACCELERATOR)
        self.updater.optimizer = torch.optim.Adam(self.updater.parameters, lr=0.1, foreach=False)
        self.ema = MovingAverage(self.net, self.average, halflife=8.0, rampup=1.0)

    @property
    def parts(self):
        return {"student": self.net, "average": self.average}, {"student": self.updater}, CostMeter()

    def step(self, seed):
        """An update by gradients that are the same however they are sharded."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.updater.parameters:
            gradient = torch.randn(parameter.shape, generator=generator)
            if isinstance(parameter, DTensor):
                gradient = distribute_tensor(gradient, MESH, parameter.placements)
            parameter.grad = gradient
        self.updater.optimizer.step()
        self.ema.update(4, 16)

    def save(self, checkpoints, step):
        tensors, values = collect(*self.parts)
        require_finite(tensors, step, checkpoints.processes)
        checkpoints.save(step, tensors, {**VALUES, **values})

    def whole(self):
        tensors, _ = collect(*self.parts)
        return {f"{group}/{name}": (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
                for group, inner in tensors.items() for name, tensor in inner.items()}  # fmt: skip


def same(a, b):
    assert a.keys() == b.keys() and len(a) > 20
    assert all(torch.equal(a[name], b[name]) for name in a), [name for name in a if not torch.equal(a[name], b[name])]


def raised(work):
    try:
        work()
    except DistillkitError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def wait():
    ACCELERATOR.wait_for_everyone()


def every_process_writes_its_own(training, checkpoints):
    training.step(1)
    training.save(checkpoints, 1)
    before = training.whole()
    training.step(2)  # what is written was copied
    checkpoints.wait()
    wait()
    step = FOLDER / "step-000000001"
    names = sorted(path.name for path in step.iterdir())
    # The second layer has two rows, so that the third process has nothing of it, but of the others.
    due = [f"{g}-0000{k}-of-00003.safetensors" for g in ("average", "optimizer-student", "student") for k in (1, 2, 3)]
    assert names == sorted([*due, "state.json"]), names
    assert list(checkpoints.load().held["student"]) and checkpoints.load(1).step == 1
    return before


def it_is_read_in_any_other_way(saved, checkpoints):
    for placements in (ROWS, COLUMNS, WHOLE):
        other = Training(placements)
        restore(checkpoints.load(), *other.parts)
        same(other.whole(), saved)
        again = Checkpoints(FOLDER.with_name(f"again-{placements[0]}"))
        other.save(again, 1)
        again.wait()
        if placements == WHOLE:
            wait()
            assert (again.folder / "step-000000001" / "student.safetensors").is_file(), "the first writes what all hold"
        other.step(2)
        second = Training(ROWS)
        restore(again.load(), *second.parts)
        second.step(2)
        same(other.whole(), second.whole())


def a_damaged_piece_is_passed_over_by_all(training, checkpoints, heard):
    expected = training.whole()
    training.save(checkpoints, 2)
    training.step(3)
    training.save(checkpoints, 3)
    checkpoints.wait()
    wait()
    piece = FOLDER / "step-000000003" / "student-00002-of-00003.safetensors"
    if RANK == 0:
        data = bytearray(piece.read_bytes())
        data[-1] ^= 1
        piece.write_bytes(data)
    wait()
    other = Training(COLUMNS)
    restore(checkpoints.load(), *other.parts)
    same(other.whole(), expected)
    assert [str(piece) in line for line in heard] == [True] * (RANK == 0), heard
    wait()
    if RANK == 0:
        piece.unlink()
    wait()
    assert checkpoints.load().step == 2
    assert "student-00002-of-00003" in raised(lambda: checkpoints.load(3))


def what_one_finds_not_finite_all_refuse(training, checkpoints):
    if RANK == 2:
        training.net[0].weight.detach().to_local().fill_(torch.inf)
    said = raised(lambda: training.save(checkpoints, 4))
    assert "student: 0.weight holds NaN or infinity" in said
    assert checkpoints.steps == [2, 3]


def what_one_cannot_write_all_hear(checkpoints):
    training, real = Training(ROWS), module.write_parts

    def full(path, parts):
        if RANK == 1:
            raise OSError(28, "No space left on device")
        return real(path, parts)

    module.write_parts = full
    sys.modules["distillkit.files"].RETRY_SECONDS = (0.0,)
    try:
        training.save(checkpoints, 5)
        said = raised(checkpoints.wait)
    finally:
        module.write_parts = real
    assert "No space left" in said and "step-000000005" in said
    wait()
    assert checkpoints.steps == [2, 3] and not list(FOLDER.glob(".step*"))
    checkpoints.wait()


def the_training_goes_on_while_it_is_written(checkpoints):
    training, real, held = Training(ROWS), module.write_parts, threading.Event()

    def slow(path, parts):
        assert held.wait(600)
        return real(path, parts)

    module.write_parts = slow
    training.save(checkpoints, 6)
    assert not (FOLDER / "step-000000006").exists() and not checkpoints.failed
    threading.Timer(0.5, held.set).start()
    training.save(checkpoints, 7)
    # The next one has waited for it.
    assert (FOLDER / "step-000000006" / "state.json").is_file()
    checkpoints.wait()
    module.write_parts = real
    wait()
    assert checkpoints.steps == [6, 7] and checkpoints.written.step == 7 and checkpoints.written.size > 0


def losses_go_on_whoever_goes_on(folder):
    """Saved by networks in parts or whole, resumed by either, and by every process alone."""
    settings = {"distance": "l2"}

    def training(parallel):
        return trainer_of(DMD, settings, parallel, duration=240, checkpoint_every=120, evaluate_every=240)

    def outputs(name):
        return Outputs(Checkpoints(folder / name), MetricsFile(folder / f"{name}.jsonl"), Trackers(), Quiet(),
                       main=RANK == 0)  # fmt: skip

    ends = {}
    for saver in ("shard", "replicate"):
        first, out = training(saver), outputs(saver)
        (folder / saver).parent.mkdir(exist_ok=True)
        with contextlib.suppress(Stopped):
            first.run(out, should_stop=lambda: first.step == 10)  # noqa: B023
        wait()
        pieces = len(list((folder / saver / "step-000000010").glob("student-*-of-00003.safetensors")))
        assert pieces == (3 if saver == "shard" else 0)
        for goer in ("shard", "replicate", None):
            second = training(goer)
            second.restore(out.checkpoints.load(10))
            assert second.step == 10
            second._means.read(second.accelerator)
            ends[saver, goer] = trained(second, 10), whole_weights(second)
    one = training(None)
    trained(one, 10)
    expected = trained(one, 10), whole_weights(one)
    for way, (means, weights) in ends.items():
        same_numbers(means, expected[0], way)
        same_numbers(weights, expected[1], way)


class Exact(Denoiser):
    """Without weights, as the denoiser of a distribution that is known."""

    def __init__(self):
        super().__init__()
        self.schedule = EDMSchedule()

    def forward(self, x, t, condition):
        return x / (1 + t[:, None] ** 2)


def what_has_no_weights_is_not_spread():
    spreading = strategy("shard")
    spreading.spread(Exact())
    assert spreading.roots == []


def main():
    heard = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("distillkit.engine.checkpoint").addHandler(handler)
    training, checkpoints = Training(ROWS), Checkpoints(FOLDER)
    saved = every_process_writes_its_own(training, checkpoints)
    it_is_read_in_any_other_way(saved, checkpoints)
    a_damaged_piece_is_passed_over_by_all(training, checkpoints, heard)
    what_one_finds_not_finite_all_refuse(training, checkpoints)
    what_one_cannot_write_all_hear(checkpoints)
    the_training_goes_on_while_it_is_written(checkpoints)
    what_has_no_weights_is_not_spread()
    losses_go_on_whoever_goes_on(FOLDER.with_name("trainings"))
    sys.stdout.write(f"done:{RANK}\n")


main()
