"""What a run is given, and what becomes of it at a scale."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from nst_engine import colors, pictures
from nst_engine.backbone import Backbone
from nst_engine.inpainting import Hole
from nst_engine.masks import StyleMasks, area_resized, area_shrunk, position_weights
from nst_engine.networks import NETWORKS
from nst_engine.objective import Objective
from nst_engine.options import StylizeOptions
from nst_engine.schedule import Scale, named_taps
from nst_engine.start import first_image
from nst_engine.style_cache import StyleCache
from nst_engine.tiled import TiledObjective, check_memory, in_tiles
from nst_engine.tiling import Tile, whole
from nst_engine.window import window


@dataclass(frozen=True)
class Material:
    """The pictures and masks of a run, at the sizes in which they were given, but no larger than the last scale's.

    Attributes:
        content: (1, 3, H, W) float32, 0-255; filled in where there is a hole.
        styles: likewise, at least one; what fills a hole without a style is the picture itself.
        masks: one per style.
        scales: of each style, its long side relative to the content's.
        subject: (1, 1, H, W), 0-1, of the content's shape: what `options.protection` protects.
        hole: what alone may change.
    """

    content: Tensor
    styles: Sequence[Tensor]
    masks: Sequence[StyleMasks]
    scales: Sequence[float]
    subject: Tensor | None = None
    hole: Hole | None = None

    def shrunk(self, size: tuple[int, int]) -> "Material":
        """The same with nothing in the content's frame larger than `size`, (height, width)."""
        content = pictures.shrunk(self.content, size)
        own = [style is self.content for style in self.styles]
        return replace(
            self,
            content=content,
            styles=[content if same else style for same, style in zip(own, self.styles, strict=True)],
            masks=[masks.shrunk(size, size if same else None) for same, masks in zip(own, self.masks, strict=True)],
            subject=area_shrunk(self.subject, size),
            hole=None if self.hole is None else self.hole.shrunk(size),
        )

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        given = (self.content, *self.styles, *self.masks, self.subject, self.hole)
        return sum(one.nbytes for one in given if one is not None)

    def first_image(
        self, scale: Scale, options: StylizeOptions, shares: Sequence[float], initial: Tensor | None
    ) -> Tensor:
        """What `options.init` starts from, (1, 3, h, w) at the scale; see `start.first_image`."""
        content, styles = self.content_at(scale), self._styles_at(scale, options)
        return first_image(content, styles, shares, self.masks, options, initial)

    def objective(
        self,
        backbone: Backbone,
        scale: Scale,
        options: StylizeOptions,
        shares: Sequence[float],
        memory_budget: int,
        cache: StyleCache,
    ) -> Objective:
        """What is minimised at the scale, of the picture as it is seen through the hole if there is one."""
        content = self.content_at(scale)
        subject = None if self.subject is None else area_resized(self.subject, content.shape[2:])
        kind = TiledObjective if self.seen_at_once(backbone, scale, options, memory_budget) is None else Objective
        return kind(
            backbone,
            content,
            self._styles_at(scale, options),
            options,
            shares,
            self.masks,
            subject,
            memory_budget=memory_budget,
            cache=cache,
        )

    def window(self, backbone: Backbone, scale: Scale, options: StylizeOptions) -> Tile:
        """What the network has to see of the picture at the scale."""
        return window(backbone, (scale.height, scale.width), options, self.masks)

    def seen_at_once(
        self, backbone: Backbone, scale: Scale, options: StylizeOptions, memory_budget: int
    ) -> Tile | None:
        """The window at the scale; None where the picture is worked on in tiles, or by several processes."""
        seen = self.window(backbone, scale, options)
        return None if in_tiles(backbone, seen.size, options, memory_budget) else seen

    def hole_at(self, scale: Scale) -> Hole | None:
        """The hole at the scale."""
        return None if self.hole is None else self.hole.resized((scale.height, scale.width))

    def check_memory(self, backbone: Backbone, scale: Scale, options: StylizeOptions, memory_budget: int) -> None:
        """Makes sure that all of the scale can be worked on, if need be in tiles.

        Raises:
            OptionError: see `tiled.check_memory`.
        """
        seen = self.seen_at_once(backbone, scale, options, memory_budget) or whole(scale.height, scale.width)
        check_memory(backbone, seen.size, self.style_sizes(scale, options), options, memory_budget)

    def content_at(self, scale: Scale) -> Tensor:
        """The content at the scale, (1, 3, h, w)."""
        return pictures.resize(self.content, (scale.height, scale.width))

    def style_sizes(self, scale: Scale, options: StylizeOptions) -> list[tuple[int, int]]:
        """Height and width of each style at the scale."""
        sides = [factor * scale.long_side for factor in self.scales]
        return [style_size(style, side, options) for style, side in zip(self.styles, sides, strict=True)]

    def _styles_at(self, scale: Scale, options: StylizeOptions) -> list[Tensor]:
        """The styles at their sizes for the scale, in the colours to be taken from them."""
        sizes = self.style_sizes(scale, options)
        styles = [pictures.resize(style, size) for style, size in zip(self.styles, sizes, strict=True)]
        if options.color != "match":
            return styles
        content = self.content_at(scale)
        return [
            colors.recolored(
                style,
                colors.moments(content, position_weights(masks.region, content.shape[2:])),
                position_weights(masks.source_region, style.shape[2:]),
            )
            for style, masks in zip(styles, self.masks, strict=True)
        ]


def style_size(style: Tensor, long_side: float, options: StylizeOptions) -> tuple[int, int]:
    """Height and width at which a style, (1, 3, H, W), has about this long side, but no side too small to be seen."""
    minimum = NETWORKS[options.model].minimum_side(named_taps(options))
    return pictures.fitted_size(style.shape[2], style.shape[3], long_side, minimum)
