"""The hooks of this package. They stand here, so that the network alone can be imported where there is only torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distillkit.contracts.hooks import FeatureExtractor, hookimpl


@hookimpl
def distillkit_extractors() -> Mapping[str, Callable[[], FeatureExtractor]]:
    from distillkit.embedded.rgb32.extractor import offered_extractors

    return offered_extractors()
