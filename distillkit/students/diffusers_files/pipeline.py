"""A distilled generator for diffusers: noise to samples in a fixed, small number of network evaluations.

    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained("this folder or its repository", trust_remote_code=True)
    images = pipeline(batch_size=16, class_labels=[3] * 16).images

Every evaluation is x <- skip x + out F(scale x, t), then x <- keep x + noise n with fresh standard normal n; the
numbers are in model_index.json. This file needs diffusers and torch alone.
"""

from __future__ import annotations

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor


class DistilledPipeline(DiffusionPipeline):
    """Samples a student that distillkit exported.

    Args:
        network: F(x, t, class_labels).
        evaluations: one mapping of scale, t, skip, out, keep and noise for each network evaluation.
        shape: of a sample, (C, H, W).
        start: standard deviation of the noise that the first evaluation sees.
        num_classes: number of classes, 0 for none.
        sign: -1 for a network that predicts the negative.
        clip: clip every result to [-1, 1].
    """

    def __init__(self, network, evaluations=(), shape=(3, 32, 32), start=1.0, num_classes=0, sign=1.0, clip=False):
        super().__init__()
        self.register_modules(network=network)
        self.register_to_config(
            evaluations=evaluations, shape=shape, start=start, num_classes=num_classes, sign=sign, clip=clip
        )

    @torch.no_grad()
    def __call__(
        self, batch_size=1, class_labels=None, generator=None, noise=None, renoise=None, output_type="pil",
        return_dict=True,
    ):  # fmt: skip
        """Make samples.

        Args:
            class_labels: one class index for each sample; all classes in turn by default.
            noise: (B, C, H, W) standard normal instead of fresh noise.
            renoise: a list of further noise, for students of several evaluations.
            output_type: "pil", "np" (B, H, W, C) in [0, 1], or "pt" (B, C, H, W) in [-1, 1].
        """
        config, device = self.config, self._execution_device
        if noise is None:
            noise = randn_tensor((batch_size, *config.shape), generator=generator, device=device)
        labels = None
        if config.num_classes:
            if class_labels is None:
                class_labels = torch.arange(len(noise)) % config.num_classes
            labels = torch.as_tensor(class_labels, device=device)
        wide = torch.float32 if device.type == "mps" else torch.float64
        x = noise.to(device, wide) * config.start
        for k, step in enumerate(config.evaluations):
            t = torch.full((len(x),), step["t"], device=device)
            seen = (step["scale"] * x).to(self.network.dtype)
            out = self.network(seen, t, class_labels=labels, return_dict=False)[0]
            x = step["skip"] * x + config.sign * step["out"] * out[:, : x.shape[1]].to(wide)
            x = x.clamp(-1, 1) if config.clip else x
            x = step["keep"] * x
            if step["noise"]:
                more = renoise[k] if renoise is not None else randn_tensor(x.shape, generator=generator, device=device)
                x = x + step["noise"] * more.to(device, wide)
        samples = x.float()
        if output_type != "pt":
            samples = (samples * 127.5 + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            samples = self.numpy_to_pil(samples / 255.0) if output_type == "pil" else samples / 255.0
        return ImagePipelineOutput(images=samples) if return_dict else (samples,)
