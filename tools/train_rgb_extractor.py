"""`python -m tools.train_rgb_extractor --data TRAIN.zip --test TEST.zip --output FILE`: train the classifier whose
features measure generators of colour images. The shipped rgb32cnn.safetensors was made by it; minutes on one GPU.

The archives are data sets in EDM's layout (images and dataset.json). It needs torch, Pillow, numpy and safetensors."""

from __future__ import annotations

import argparse
import copy
import hashlib
import io
import json
import math
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from distillkit.embedded.rgb32.classifier import Rgb32CNN

BATCH, PEAK_LR, WARMUP, EMA, SHIFT, CUTOUT = 512, 0.2, 0.15, 0.998, 4, 8


def read_archive(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of an archive in EDM's layout."""
    with zipfile.ZipFile(path) as archive:
        named = sorted(json.loads(archive.read("dataset.json"))["labels"])
        images = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name, _ in named]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor([label for _, label in named])


def augmented(images: Tensor) -> Tensor:
    """Images (B, 3, 32, 32), each mirrored or not, shifted by up to 4 pixels, and with a grey square of 8x8."""
    count, _, side, _ = images.shape
    at, along = images.device, torch.arange(side, device=images.device)
    padded = F.pad(images, [SHIFT] * 4, mode="reflect")
    rows, columns = (torch.randint(2 * SHIFT + 1, (count, 1), device=at) + along for _ in range(2))
    columns = torch.where(torch.rand(count, 1, device=at) < 0.5, columns, columns.flip(1))
    each, channels = torch.arange(count, device=at)[:, None, None, None], torch.arange(3, device=at)[:, None, None]
    moved = padded[each, channels, rows[:, None, :, None], columns[:, None, None, :]]
    up, left = (along - torch.randint(side, (count, 1), device=at) for _ in range(2))
    inside = [(distance >= -CUTOUT // 2) & (distance < CUTOUT // 2) for distance in (up, left)]
    return moved.masked_fill(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0.0)


def train_classifier(images: Tensor, labels: Tensor, *, epochs: float, seed: int) -> Rgb32CNN:
    """The moving average of a network trained on images (N, 3, 32, 32) in [-1, 1], on their device."""
    torch.manual_seed(seed)
    steps, device = max(1, round(epochs * len(images) / BATCH)), images.device
    network = Rgb32CNN().to(device, memory_format=torch.channels_last)
    average = copy.deepcopy(network).eval()
    both = list(zip(average.state_dict().values(), network.state_dict().values(), strict=True))
    optimizer = torch.optim.SGD(network.parameters(), PEAK_LR, momentum=0.9, weight_decay=5e-4, nesterov=True)
    order, began = torch.randperm(len(images), device=device), time.monotonic()
    for step in range(steps):
        done = step / steps
        factor = done / WARMUP if done < WARMUP else (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP))) / 2
        optimizer.param_groups[0]["lr"] = PEAK_LR * factor
        if len(order) < BATCH:
            order = torch.cat([order, torch.randperm(len(images), device=device)])
        batch, order = order[:BATCH], order[BATCH:]
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = network(augmented(images[batch]).contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), labels[batch], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for mean, now in both:
            if mean.is_floating_point():
                mean.lerp_(now, 1 - min(EMA, (1 + step) / (10 + step)))
        if step % max(1, steps // 20) == 0:
            print(f"step {step:,} of {steps:,}: loss {loss.item():.3f}, {time.monotonic() - began:.0f} s", flush=True)
    return average


def packed(network: Rgb32CNN) -> dict[str, Tensor]:
    """What is shipped: convolutions and the head in float16, the moments of the normalisation in float32."""
    return {
        name: (value.half() if value.ndim > 1 else value).cpu().contiguous()
        for name, value in network.state_dict().items()
    }


@torch.inference_mode()
def outputs(network: Rgb32CNN, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features (N, 128) and classes (N,) of images (N, 3, 32, 32) in [-1, 1], on the CPU."""
    parts = [network.features(batch) for batch in images.split(1000)]
    return torch.cat(parts).cpu(), torch.cat([network.head(part).argmax(1) for part in parts]).cpu()


def main() -> None:
    """Train, measure what was written as it will be used, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10's training images, a zip in EDM's layout")
    parser.add_argument("--test", type=Path, required=True, help="its test images")
    parser.add_argument("--output", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=80, help="passes over the training images; may be below 1")
    options = parser.parse_args()
    torch.backends.cudnn.benchmark = True
    (train, labels), (test, answers) = read_archive(options.data), read_archive(options.test)
    print(f"read {len(train):,} and {len(test):,} images of {tuple(train.shape[1:])}", flush=True)
    device = torch.device(options.device)
    images = train.to(device).float() / 127.5 - 1
    tensors = packed(train_classifier(images, labels.to(device), epochs=options.epochs, seed=options.seed))
    network = Rgb32CNN().eval()
    network.load_state_dict(tensors)
    scale = torch.cov(outputs(network.to(device), images)[0].double().T).trace().sqrt()
    features, classes = outputs(network.cpu(), test.float() / 127.5 - 1)
    accuracy = (classes == answers).double().mean().item()
    card = {
        "name": "rgb32cnn/pool128", "data": "CIFAR-10, 50,000 training images",
        "data_sha256": hashlib.sha256(options.data.read_bytes()).hexdigest(),
        "test_accuracy": round(accuracy, 4), "seed": options.seed, "epochs": options.epochs,
        "torch": torch.__version__, "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
    }  # fmt: skip
    save_file({**tensors, "scale": scale.float()}, options.output, metadata={"card": json.dumps(card)})
    again = Rgb32CNN().eval()
    again.load_state_dict({name: value for name, value in load_file(options.output).items() if name != "scale"})
    assert torch.equal(outputs(again, test[:1000].float() / 127.5 - 1)[0], features[:1000]), "read back otherwise"
    print(f"test accuracy {accuracy:.4f} on the CPU; scale {scale:.4f}; wrote {options.output}: {json.dumps(card)}")


if __name__ == "__main__":
    main()
