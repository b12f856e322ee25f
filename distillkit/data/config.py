"""What can be set of real images."""

from __future__ import annotations

from typing import Annotated, Literal

from PIL import ImageColor
from pydantic import AfterValidator, Field

from distillkit.contracts.source import SourceConfig
from distillkit.counts import Count
from distillkit.data.decoding import MOST_PIXELS, Decoder, Filter


def _colour(value: str) -> str:
    """The colour as it was given.

    Raises:
        ValueError: when it is none.
    """
    try:
        ImageColor.getrgb(value)
    except ValueError as error:
        raise ValueError("a colour such as white, black or '#808080'") from error
    return value


class DataConfig(SourceConfig):
    """Real images, where the method needs them."""

    path: str | None = Field(
        None, min_length=1, json_schema_extra={"flag": "data"},
        description="zip or tar file, folder, parquet or .npz file, table (csv, jsonl) or hf:ORG/NAME[:SPLIT]; tar or "
        "parquet files as a stream, by a pattern or an address such as s3://bucket/train-{0000..0099}.tar; what comes "
        "with the teacher if none",
    )  # fmt: skip
    image_column: str | None = Field(None, description="column of the images, where a data set has several")
    label_column: str | None = Field(None, description="column of the labels, where a data set has several")
    caption_column: str | None = Field(None, description="column of the captions, where a table has several")
    latent_column: str | None = Field(
        None, description="column of latents, or their name in the members of tar files (0001.NAME.npy), where a "
        "stream has others too",
    )  # fmt: skip
    latents_scaled: Literal["auto", "yes", "no"] = Field(
        "auto", description="whether latents of the data are what the denoiser sees (yes) or what the autoencoder "
        "gives (no); auto: as the data record it",
    )  # fmt: skip
    embedding_columns: str | None = Field(
        None, min_length=1, max_length=1000, description="text embeddings of a stream by the encoder's fields: "
        "text,pooled or text=prompt_embeds; captions are encoded if none",
    )  # fmt: skip
    resolution: int | None = Field(
        None, ge=1, le=4096, description="crop to the centred square and resize to this; images are left alone if none"
    )
    filter: Filter = Field("lanczos", description="resampling filter, where a resolution is given")
    background: Annotated[str, AfterValidator(_colour)] | None = Field(
        None, description="colour behind transparent images: white, black, '#808080'; they are refused if none"
    )
    grey: bool = Field(False, description="convert images with colours to grey")
    sampling: Literal["as-is", "balanced"] = Field(
        "as-is", description="every image alike (as-is) or every class alike (balanced)"
    )
    flip: bool = Field(False, description="mirror every other image, drawn at random")
    max_pixels: Count = Field(
        MOST_PIXELS, ge=1, le=2**30, description="larger images are refused before they are decoded"
    )
    skip_damaged: Count = Field(
        0, ge=0, json_schema_extra={"flag": "skip-damaged"},
        description="how many images may be damaged: each is named, and the next of its class is read in its place",
    )  # fmt: skip
    latents: Literal["auto", "store", "on-the-fly"] = Field(
        "auto", description="latents of models that have some: made once into a store in the cache, or on the fly; "
        "auto goes by their size",
    )  # fmt: skip
    latents_dtype: Literal["fp32", "fp16"] = Field("fp32", description="what latents are rounded to")
    workers: int = Field(1, ge=0, le=64, description="threads that decode ahead, more for large images; 0: none")

    def decoder(self, channels: int | None = None) -> Decoder:
        """How these images become pixels of so many channels; as many as each has, if none are given."""
        return Decoder(self.resolution, self.filter, channels, self.background, self.max_pixels)
