"""`python tools/train_digits_classifier.py FOLDER`: train the classifier whose features measure embedded digits, and
write it with its reference statistics. The shipped files were made by it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from distillkit.embedded.digits.classifier import DigitsCNN
from distillkit.embedded.digits.data import load_digits, split_digits
from distillkit.embedded.digits.protocol import REFERENCE, WEIGHTS, DigitsFeatures
from distillkit.evaluation.moments import Moments
from distillkit.progress import reporter_for


def train_classifier(seed: int = 0, epochs: int = 60) -> tuple[DigitsCNN, float]:
    """Train digits8cnn on four fifths of the digits, slightly rotated, scaled and shifted; returns test accuracy."""
    torch.manual_seed(seed)
    pixels, labels = load_digits()
    images = pixels.float() / 127.5 - 1
    train, test = split_digits()
    network = DigitsCNN()
    batches = len(train) // 64
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        network.train()
        for batch in train[torch.randperm(len(train))][: batches * 64].split(64):
            loss = F.cross_entropy(network(jitter(images[batch])), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        accuracy = (network(images[test]).argmax(1) == labels[test]).float().mean().item()
    return network, accuracy


def jitter(images: Tensor) -> Tensor:
    """Random rotation (sd 7 degrees), scale (6 %) and shift (4 %) of (B, 1, 8, 8) in [-1, 1]; black outside."""
    count = len(images)
    angle, scale = torch.randn(count) * 0.12, 1 + torch.randn(count) * 0.06
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = scale * angle.cos()
    affine[:, 1, 0] = scale * angle.sin()
    affine[:, 0, 1] = -affine[:, 1, 0]
    affine[:, :, 2] = torch.randn(count, 2) * 0.08
    where = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, where, align_corners=False) - 1


def main(folder: Path) -> None:
    """Train the classifier and write it with the reference statistics of all images."""
    network, accuracy = train_classifier()
    pixels, _ = load_digits()
    with torch.inference_mode():
        features = network.features(pixels.float() / 127.5 - 1)
    raw = Moments(DigitsFeatures.dim)
    raw.add(features)
    scale = raw.finish().covariance.trace().sqrt()
    moments = Moments(DigitsFeatures.dim)
    with torch.inference_mode():
        moments.add(features / scale)
    moments.finish()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), folder / WEIGHTS, metadata={"test_accuracy": f"{accuracy:.4f}"})
    reference = {"mean": moments.mean, "covariance": moments.covariance, "scale": scale}
    save_file(reference, folder / REFERENCE, metadata={"count": str(moments.count)})
    reporter_for().say(f"test accuracy {accuracy:.4f} on {len(split_digits()[1])} held-out images; wrote {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
