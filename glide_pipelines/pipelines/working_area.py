"""Where an editing pipeline works: a part of an image, resized for the model, and put back when it is done."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..images import images_to_tensor, is_white, pad_to


Size = tuple[int, int]  # height, width
Box = tuple[int, int, int, int]  # left, top, right, lower

# What is repainted spans between these shares of what the model sees, as far as the image allows.
MIN_HOLE_SHARE = 1 / 4
MAX_HOLE_SHARE = 3 / 4
# The share around the hole that shows how the image goes on: four of 128 pixels.
_MARGIN = 1 / 32
# A mask that falls into more parts is taken as it is, a dotted one for one hole.
_MAX_HOLES = 100
# Colours in [-1, 1] that differ by more are another content, not the same one shifted.
_MAX_COLOUR_SHIFT = 0.1


@dataclass(frozen=True)
class WorkingArea:
    """A part of an image and the size that it is worked on at.

    Attributes:
        box (`tuple[int, int, int, int]`): The part, in pixels of the image: left, top, right, lower.
        size (`tuple[int, int]`): Height and width that the part is resized to.
        padded_size (`tuple[int, int]`): Height and width of what the model sees: `size`, with the edges on the right
            and below repeated.
    """

    box: Box
    size: Size
    padded_size: Size

    @classmethod
    def fitted(cls, box: Box, working_size: Size, multiple: int) -> WorkingArea:
        """A part of an image reduced or enlarged to fit a working size, its aspect ratio kept. What has that size once
        its sides are multiples of `multiple` is not resized."""
        size = height, width = box[3] - box[1], box[2] - box[0]
        if rounded_up(size, multiple) != working_size:
            scale = min(working_size[0] / height, working_size[1] / width)
            size = max(1, round(height * scale)), max(1, round(width * scale))
        return cls(box, size, working_size)

    @property
    def box_size(self) -> Size:
        """Height and width of the part in the image."""
        left, top, right, lower = self.box
        return lower - top, right - left

    @property
    def is_resized(self) -> bool:
        """Whether the model sees the part at another size than its own."""
        return self.size != self.box_size

    def extract(self, image: Image.Image) -> Image.Image:
        """The part of an image, as the model sees it."""
        return pad_to([self._resize(image)], self.padded_size)[0]

    def extract_mask(self, mask: Image.Image) -> Image.Image:
        """The part of a grey mask, as the model sees it.

        Where it is resized, a pixel of the model's is white if anything in it is, and so are its neighbours: what is
        kept there was mixed with what is not, and [`match_colours`] needs a part of the image painted twice.
        """
        part = mask.crop(self.box)
        if self.is_resized:
            part = Image.fromarray((255 * _dilated(self._hole(mask))[0]).byte().numpy())
        return pad_to([part], self.padded_size)[0]

    def resize_back(self, sample: torch.Tensor) -> torch.Tensor:
        """What the model made of the part, `[3, *padded_size]`, at the part's size in the image."""
        return self._resize_region(sample[:, : self.size[0], : self.size[1]], self.box)

    def paste(self, sample: torch.Tensor, image: Image.Image, mask: Image.Image) -> torch.Tensor:
        """The image, with what the model made of the part where the mask is white.

        Where that had to be resized, its colours are made to meet those of the image at the edge of the mask.

        Args:
            sample (`torch.Tensor` of shape `[3, *padded_size]`): What the model made of the part, in [-1, 1].
            image (`PIL.Image.Image`): The whole image.
            mask (`PIL.Image.Image`): Grey, of the same size.

        Returns:
            `torch.Tensor` of shape `[3, H, W]`: in [-1, 1]; equal to the image where the mask is black.
        """
        sample = sample[:, : self.size[0], : self.size[1]]
        if self.is_resized:
            known = images_to_tensor([self._resize(image)])[0].to(sample)
            sample = match_colours(sample, known, self._hole(mask).to(sample))
        pasted = images_to_tensor([image])[0].to(sample)
        left, top, right, lower = region = hole_box(mask)
        at = (..., slice(top, lower), slice(left, right))
        hole = is_white(mask.crop(region)).to(sample.device)
        pasted[at] = torch.where(hole, self._resize_region(sample, region), pasted[at])
        return pasted

    def _resize(self, image: Image.Image) -> Image.Image:
        return image.crop(self.box).resize(self.size[::-1], Image.Resampling.BICUBIC)

    def _hole(self, mask: Image.Image) -> torch.Tensor:
        """1 for each pixel of the resized part in which anything is white; of shape `[1, *size]`."""
        return F.adaptive_max_pool2d(is_white(mask.crop(self.box)).float(), self.size)

    def _resize_region(self, sample: torch.Tensor, region: Box) -> torch.Tensor:
        """What the model made of a region of the image, from that of the part, `[3, *size]`."""
        (x, y), (left, top, right, lower) = self.box[:2], region
        if not self.is_resized:
            return sample[:, top - y : lower - y, left - x : right - x]
        down, across = (resized / own for own, resized in zip(self.box_size, self.size, strict=True))
        source = (left - x) * across, (top - y) * down, (right - x) * across, (lower - y) * down
        # PIL resizes floats, a channel at a time, and of a large image only what is needed.
        channels = [
            np.asarray(Image.fromarray(channel).resize((right - left, lower - top), Image.Resampling.BICUBIC, source))
            for channel in sample.float().cpu().numpy()
        ]
        return torch.from_numpy(np.stack(channels)).clamp(-1, 1).to(sample)


def rounded_up(size: Size, multiple: int) -> Size:
    """A size with its sides rounded up to multiples of a number."""
    height, width = (math.ceil(length / multiple) * multiple for length in size)
    return height, width


def size_of_aspect(size: Size, working_size: Size, multiple: int) -> Size:
    """The shape of an image with about as many pixels as a working size, its sides multiples of a number."""
    num_pixels = working_size[0] * working_size[1]
    height = min(max(math.sqrt(num_pixels * size[0] / size[1]), multiple), num_pixels / multiple)
    return round(height / multiple) * multiple, round(num_pixels / height / multiple) * multiple


def hole_box(mask: Image.Image) -> Box:
    """The box around all that is white (0.5 and above) in a grey mask."""
    box = mask.point(lambda value: 255 * (value >= 128)).getbbox()
    assert box is not None  # masks without a white pixel are refused when they are loaded
    return box


def holes_of(mask: Image.Image) -> list[Box]:
    """The boxes around the holes of a grey mask, as far as rows and columns without anything white part them."""
    white, boxes = is_white(mask)[0].numpy(), [hole_box(mask)]
    for axis in (0, 1, 0, 1):
        parted = []
        for left, top, right, lower in boxes:
            filled = white[top:lower, left:right].any(axis)
            for start, stop in np.flatnonzero(np.diff(filled, prepend=False, append=False)).reshape(-1, 2).tolist():
                parted.append(
                    (left + start, top, left + stop, lower) if axis == 0 else (left, top + start, right, top + stop)
                )
        if len(parted) <= _MAX_HOLES:
            boxes = parted
    return boxes


def without_holes(mask: Image.Image, holes: Iterable[Box]) -> Image.Image:
    """A grey mask with some of its holes made black."""
    mask = mask.copy()
    for hole in holes:
        mask.paste(0, hole)
    return mask


def hole_groups(holes: Sequence[Box], image_size: Size, working_size: Size) -> list[list[Box]]:
    """Holes that a model repaints together, the largest first.

    They share a part of the image, see [`scene_box`], that is no larger than the largest of them needs alone.
    """
    left = sorted(holes, key=lambda hole: _reduction(hole, working_size), reverse=True)
    groups = []
    while left:
        group, others = left[:1], left[1:]
        alone = _reduction(scene_box(group, image_size, working_size), working_size)
        for hole in others:
            box = scene_box([*group, hole], image_size, working_size)
            if _reduction(box, working_size) <= alone:
                group.append(hole)
        left = [hole for hole in others if hole not in group]
        groups.append(group)
    return groups


def scene_box(holes: Sequence[Box], image_size: Size, working_size: Size) -> Box:
    """The part of an image in which a model repaints holes best.

    That is the largest one of the model's aspect ratio: it was trained on such crops with the captions of whole images.
    It is smaller where the largest hole would span less of it than `MIN_HOLE_SHARE`, and could not show what is asked
    for; and larger, and then padded, where all of them would span more than `MAX_HOLE_SHARE`.

    Args:
        holes (`Sequence[tuple[int, int, int, int]]`): Boxes around what is repainted.
        image_size, working_size (`tuple[int, int]`): Heights and widths of the image, and of what the model sees.
    """
    lefts, tops, rights, lowers = zip(*holes, strict=True)
    all_holes = min(lefts), min(tops), max(rights), max(lowers)
    largest = max(_reduction(hole, working_size) for hole in holes)
    ratios = image_size[0] / working_size[0], image_size[1] / working_size[1]
    reduction = max(min(*ratios, largest / MIN_HOLE_SHARE), _reduction(all_holes, working_size) / MAX_HOLE_SHARE)
    is_close = reduction < min(ratios)
    # All of a small image: enlarged, a part of it would show nothing more.
    reduction = max(reduction, min(max(ratios), 1))
    height, width = (round(reduction * length) for length in working_size)
    # A caption tells of what is in the middle of an image: a large part of it leaves that only as far as it must.
    return box_around(all_holes, (height, width), image_size, 1 / 2 if is_close else _MARGIN)


def _reduction(box: Box, working_size: Size) -> float:
    """How many times larger than a working size a box is."""
    return max((box[3] - box[1]) / working_size[0], (box[2] - box[0]) / working_size[1])


def box_around(hole: Box, size: Size, image_size: Size, margin: float = 1 / 2) -> Box:
    """A box around a hole, cut to lie in the image.

    Args:
        hole (`tuple[int, int, int, int]`): What the box is to hold.
        size, image_size (`tuple[int, int]`): Heights and widths of the box, before it is cut, and of the image.
        margin (`float`, defaults to 0.5): The share of the box that lies on each side of the hole, at least; as far as
            it leaves room, the box is moved towards the middle of the image. At 0.5 the hole is in its middle.
    """

    def start(first: int, last: int, length: int, image_length: int) -> int:
        centred, room = (first + last - length) // 2, max(int((length - (last - first)) / 2 - margin * length), 0)
        wanted = min(max((image_length - length) // 2, centred - room), centred + room)
        return min(max(wanted, 0), image_length - length)

    height, width = (min(given, own) for given, own in zip(size, image_size, strict=True))
    x, y = start(hole[0], hole[2], width, image_size[1]), start(hole[1], hole[3], height, image_size[0])
    return x, y, x + width, y + height


def match_colours(sample: torch.Tensor, image: torch.Tensor, hole: torch.Tensor) -> torch.Tensor:
    """Put what was repainted into a hole so that at its edge it has, on average, the colours of the image.

    The model repainted a ring around the hole, too. By how much it missed the image's colours there tells by how much
    it misses them at the edge; the correction fades out over five pixels.

    Args:
        sample, image (`torch.Tensor` of shape `[3, H, W]`): What was repainted, and the image, in [-1, 1].
        hole (`torch.Tensor` of shape `[1, H, W]`): 1 where the sample is wanted.

    Returns:
        `torch.Tensor` of shape `[3, H, W]`: the image, with the sample in the hole.
    """

    def blur(values: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.avg_pool2d(values, 5, stride=1, padding=2), 5, stride=1, padding=2)

    ring = _dilated(hole) - hole
    missed = (image - sample).clamp(-_MAX_COLOUR_SHIFT, _MAX_COLOUR_SHIFT) * ring
    # Next to a straight edge the ring weighs 4 of 25: from there on its share falls, and the correction with it.
    shift = blur(missed) / blur(ring).clamp(min=4 / 25)
    return torch.where(hole.bool(), (sample + shift).clamp(-1, 1), image)


def _dilated(hole: torch.Tensor) -> torch.Tensor:
    """A mask `[1, H, W]` with the neighbours of what is 1 in it."""
    return F.max_pool2d(hole, 3, stride=1, padding=1)
