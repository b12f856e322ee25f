"""Real images as a source: files that the user names, or what the teacher was trained on and brings."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import torch

from distillkit.contracts.source import Batches, Images, Source, SourceConfig, SourceJob, SourcePlan
from distillkit.contracts.teacher import Teacher
from distillkit.contracts.text import PromptList
from distillkit.data.captions import captions_of, fingerprint_of
from distillkit.data.config import DataConfig
from distillkit.data.files import ImageFiles
from distillkit.data.given_latents import GivenLatents, read_format
from distillkit.data.given_text import Embeddings, embeddings_of
from distillkit.data.hub import is_hub, require_datasets
from distillkit.data.latents import has_latents, plan_latents, with_latents
from distillkit.data.reader import ImageReader, open_files
from distillkit.data.stream import ImageStream, open_reader, open_stream, require_captions
from distillkit.data.stream_files import BUDGET, StreamedFiles
from distillkit.data.synthetic import SyntheticImages
from distillkit.downloads import DownloadNeeded, only_planned
from distillkit.errors import UsageError

__all__ = ["DataConfig", "ImageSource"]


class ImageSource(Source[Images]):
    """Real images that fit the teacher, as its samples, with conditions of their labels."""

    name: ClassVar[str] = "data"
    batch_type: ClassVar[type] = Images
    Config: ClassVar[type[SourceConfig]] = DataConfig
    config: DataConfig

    def open(self, job: SourceJob) -> Batches[Images]:
        if self.config.path is None:
            job.say(f"data: {self.plan().summary}")
            return self._own()(job.device)
        stream = self._opened(job.device, job.say, job.world)
        job.say(f"data: {stream.summary}")
        if isinstance(stream, GivenLatents):
            return stream
        return with_latents(stream, job, self.draws) if has_latents(stream.codec) else stream

    def check(self) -> None:
        """Open the files as `open` does; a dataset of the hub is downloaded for it."""
        if self.config.path is None:
            self._own()
        else:
            self._opened()

    def plan(self) -> SourcePlan:
        """What would be served, from where; files on this machine are checked as by `check`.

        Raises:
            UsageError, DistillkitError: as `open`.
        """
        path = self.config.path
        if path is None:
            self._own()
            return SourcePlan(f"the data that come with the teacher {self.teacher.spec.name}")
        if is_hub(path):
            require_datasets()
            return SourcePlan(f"{path}, loaded and checked when the run starts")
        stream = self._opened()
        held = 0
        if isinstance(self._files, StreamedFiles):
            held = min(BUDGET, int(2 * self.batch * self._files.block_bytes))
        if isinstance(stream, GivenLatents):
            return SourcePlan(stream.summary, memory_bytes=held)
        held += stream.kept_bytes
        if not has_latents(stream.codec):
            return SourcePlan(stream.summary, memory_bytes=held)
        latents = plan_latents(stream, self.draws)
        memory = 0 if latents.stored else held
        return SourcePlan(f"{stream.summary}; {latents.summary}", disk_bytes=latents.disk_bytes, memory_bytes=memory)

    @property
    def prompts(self) -> PromptList | None:
        path = self.config.path
        if path is None:
            return None
        if is_hub(path) and only_planned(path):
            raise DownloadNeeded(f"which captions {path} holds is known only when it has been downloaded")
        return captions_of(self._files, path)

    @property
    def fingerprint(self) -> str:
        """Of the images, and of their captions where the teacher reads them."""
        if not self.config.path:
            return ""
        return fingerprint_of(self._files, self.teacher.conditioner)

    @classmethod
    def synthetic(cls, teacher: Teacher, device: torch.device) -> Batches[Images]:
        return SyntheticImages(teacher, device)

    @cached_property
    def _files(self) -> ImageFiles:
        return open_files(self.config, self.job)

    @cached_property
    def _reader(self) -> ImageReader:
        return open_reader(self.config, self.teacher, self._files)

    @cached_property
    def _embeddings(self) -> Embeddings | None:
        return embeddings_of(self._files, self.config, self.teacher)

    def _opened(
        self, device: torch.device | None = None, say: Callable[[str], None] = lambda text: None, processes: int = 1
    ) -> ImageStream | GivenLatents:
        """The images, or the latents where the data are of some; on the CPU if no device is given."""
        files, device = self._files, device or torch.device("cpu")
        if isinstance(files, StreamedFiles) and files.of_arrays:
            format = read_format(files, self.config, self.teacher)
            require_captions(files, str(self.config.path), self.teacher, self._embeddings)
            return GivenLatents(
                files, format, self.teacher, device, self.batch, processes=processes, embeddings=self._embeddings,
                say=say,
            )  # fmt: skip
        if given := next(
            (name for name in ("latent_column", "latents_scaled") if getattr(self.config, name) not in (None, "auto")),
            None,
        ):
            raise UsageError(
                f"--data-{given.replace('_', '-')} is for data that hold latents, and {self.config.path} holds images"
            )
        return open_stream(
            self.config, self.teacher, device, reader=self._reader, batch=self.batch, processes=processes,
            embeddings=self._embeddings, say=say,
        )  # fmt: skip

    def _own(self) -> Callable[[torch.device], Batches[Images]]:
        """The way to the data that the teacher brings.

        Raises:
            UsageError: where it brings none, or settings are given that are for files.
        """
        if self.teacher.images is None:
            raise UsageError(
                f"this method needs real images and the teacher {self.teacher.spec.name} comes with none: "
                "--data FILE.zip, --data FOLDER or --data hf:ORG/NAME; methods with a --source can do without "
                "(--source pairs)"
            )
        plain = DataConfig()
        for field in (
            "resolution",
            "sampling",
            "flip",
            "background",
            "grey",
            "image_column",
            "label_column",
            "caption_column",
            "latent_column",
            "embedding_columns",
            "latents_scaled",
        ):
            if getattr(self.config, field) != getattr(plain, field):
                raise UsageError(
                    f"--data-{field.replace('_', '-')} is for images of your own: give their --data as well, or leave "
                    "it out; "
                    f"those that come with the teacher {self.teacher.spec.name} are used as they are"
                )
        return self.teacher.images
