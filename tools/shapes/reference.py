"""`python -m tools.shapes.reference`: what the protocol `shapes` compares with, and the teacher's facts, from the
shipped classifier and pipeline. Seconds on a CPU; then run tools/record_assets.py."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

from distillkit.embedded.assets import FOLDER
from distillkit.embedded.shapes.classifier import WEIGHTS, ShapesCNN
from distillkit.embedded.shapes.protocol import REFERENCE, held_out_prompts
from distillkit.embedded.shapes.teacher import FOLDER as PIPELINE
from distillkit.embedded.shapes.teacher import SPEC
from distillkit.embedded.shapes.world import codes, draw_all, parse
from distillkit.files import sha256, write_json, write_tensors
from distillkit.models.diffusers.folder import describe

DRAWINGS, SEED = 10, 7
"""Of every sentence."""


@torch.inference_mode()
def main() -> None:
    place = FOLDER / "shapes"
    tensors, network = load_file(place / WEIGHTS), ShapesCNN()
    scale = float(tensors.pop("scale"))
    network.load_state_dict(tensors)
    asked = codes([parse(text) for text in held_out_prompts()]).repeat(DRAWINGS, 1)
    drawn = draw_all(asked, torch.Generator().manual_seed(SEED))
    network.eval()
    features = torch.cat([network.features(part.float() / 127.5 - 1) for part in drawn.split(1000)]).double() / scale
    moments = {
        "mean": features.mean(0),
        "covariance": torch.cov(features.T),
        "count": torch.tensor(len(features)),
    }
    write_tensors(place / REFERENCE, moments, {"format": "pt"})
    spec = describe(PIPELINE).model_dump(mode="json")
    # Its parts are found with the package, wherever that is.
    spec["name"], spec["source"] = "shapes", "trained by tools/shapes"
    spec["licence"] = "Apache-2.0"
    spec["codec"]["parts"]["source"] = spec["conditioner"]["encoder"]["parts"]["source"] = "shapes"
    spec["solver_steps"] = 20
    spec["weights_sha256"] = sha256(PIPELINE / "unet" / "diffusion_pytorch_model.safetensors")
    write_json(place / SPEC, spec)


if __name__ == "__main__":
    main()
