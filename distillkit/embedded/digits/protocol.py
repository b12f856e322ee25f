"""The embedded evaluation: Fréchet distance of 8x8 digits in the features of a small shipped classifier.

`python -m distillkit.embedded.digits.protocol FOLDER` trains the classifier anew and writes it with its reference
statistics; the shipped files were made by it.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from distillkit.embedded.assets import asset_hashes, asset_path
from distillkit.embedded.digits.data import load_digits, split_digits
from distillkit.errors import DistillkitError
from distillkit.evaluation.extractor import FeatureExtractor
from distillkit.evaluation.moments import Moments
from distillkit.evaluation.protocol import ExtractorSpec, Protocol, SampleSpec
from distillkit.evaluation.reference import Reference
from distillkit.embedded.digits.classifier import DigitsCNN

WEIGHTS, REFERENCE = "digits8cnn.safetensors", "digits8-reference.safetensors"


class DigitsFeatures(FeatureExtractor):
    """Features (B, 64) of digit images (B, 1, 8, 8) uint8, in units of the reference's total standard deviation.

    Divided by sqrt(trace of the reference's covariance), so that a Fréchet distance of 1 is as far as the data
    set's own spread and 0 is equality.
    """

    dim = 64
    classes = 10

    def __init__(self, network: DigitsCNN, scale: float, weights_sha256: str) -> None:
        super().__init__()
        self.network, self.scale = network.eval().requires_grad_(False), scale
        self.spec = ExtractorSpec(
            id="digits8cnn/fc64",
            weights_sha256=weights_sha256,
            dim=self.dim,
            input="(1, 8, 8) in [-1, 1]",
            scale="divided by sqrt(tr covariance of the reference)",
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network.features(self._images(pixels)) / self.scale

    def probabilities(self, pixels: Tensor) -> Tensor:
        return self.network(self._images(pixels)).softmax(1)

    @staticmethod
    def _images(pixels: Tensor) -> Tensor:
        if pixels.shape[1:] != (1, 8, 8):
            raise DistillkitError(
                f"digits8cnn judges digits of (1, 8, 8), not images of {tuple(pixels.shape[1:])}; choose another "
                "--protocol or --extractor"
            )
        return pixels.float() / 127.5 - 1


@cache
def digits_features() -> DigitsFeatures:
    """The shipped extractor."""
    network = DigitsCNN()
    network.load_state_dict(load_file(asset_path(WEIGHTS)))
    return DigitsFeatures(network, float(load_file(asset_path(REFERENCE))["scale"]), asset_hashes()[WEIGHTS])


@cache
def digits_reference() -> Reference:
    """Moments and features of all 1,797 images."""
    tensors, extractor = load_file(asset_path(REFERENCE)), digits_features()
    with torch.no_grad():
        features = extractor(load_digits()[0])
    return Reference("digits8/all", 1797, tensors["mean"], tensors["covariance"], features)


def digits_protocol(count: int = 5000, first_seed: int = 0) -> Protocol:
    """The protocol `digits8`."""
    return Protocol(
        name="digits8",
        extractor=digits_features().spec,
        samples=SampleSpec(count=count, first_seed=first_seed),
        reference=digits_reference().spec,
    )


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
    print(f"test accuracy {accuracy:.4f} on {len(split_digits()[1])} held-out images; wrote {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
