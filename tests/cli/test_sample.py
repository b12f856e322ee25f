"""Samples of teachers: by their own solver, from the noise that their students start from."""

import numpy as np
import torch
from PIL import Image

from distillkit import SampleRNG, load_teacher


def test_a_teacher_is_sampled_by_its_own_solver(tiny_teacher_folder, inside, tmp_path):
    done = inside("sample", tiny_teacher_folder, "--num", "3", "--seed", "2", "--labels", "5", "--output", "many")
    assert done.returncode == 0 and "7 network evaluation(s)" in done.stdout, done.stderr
    teacher = load_teacher(str(tiny_teacher_folder))
    noise = SampleRNG(2).normal("sample", 0, range(3), teacher.spec.shape)
    condition = teacher.conditioner.encode(torch.tensor([5, 5, 5]))
    expected = teacher.codec.decode(teacher.sample(noise, condition))
    made = [np.asarray(Image.open(tmp_path / "many" / f"{i:06d}.png")) for i in range(3)]
    assert np.array_equal(np.stack(made), expected[:, 0].numpy())
    fewer = inside("sample", tiny_teacher_folder, "--num", "2", "--nfe", "3", "--guidance", "1")
    assert fewer.returncode == 0 and "3 network evaluation(s)" in fewer.stdout
    even = inside("sample", tiny_teacher_folder, "--nfe", "4")
    assert even.returncode == 2 and "--nfe 4" in even.stderr
    unknown = inside("sample", "digit")
    assert unknown.returncode == 2 and "digits" in unknown.stderr
