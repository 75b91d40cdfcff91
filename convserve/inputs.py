"""From images to rows as a network reads them: decoded, resized and cropped or as they are, or values already."""

from dataclasses import replace

import numpy as np

from convserve.averaging import Averaging
from convserve.engine.source import ImageRows, tensor_rows
from convserve.errors import InputError, ShapeError
from convserve.graph.ir import Volume
from convserve.images.decode import ImageSource, check_pixels, decode
from convserve.images.preprocess import Preprocess
from convserve.scenes import RowSource, is_scene, scene_rows

__all__ = ["Inputs"]


class Inputs:
    """What a network reads, and how pixels become that.

    An image is a path, encoded bytes, a PIL image or a uint8 array (H, W, C), preprocessed; or float32 (1, C, H, W),
    taken as already preprocessed. Methods raise ImageError, ShapeError, InputError.
    """

    def __init__(self, volume: Volume, preprocess: Preprocess | None) -> None:
        """preprocess: by default pixels are values as they are."""
        self._volume = volume
        self._given = preprocess

    @property
    def preprocess(self) -> Preprocess:
        """What is done to pixels; InputError where the network reads no images."""
        if self._given is not None:
            return self._given
        channels = self._volume.channels
        if channels not in (1, 3):
            raise InputError(f"the network reads {channels} channels; images have 1 or 3: use run() with an array")
        return Preprocess(channels="gray" if channels == 1 else "rgb")

    def at_window(self, image: ImageSource, *, flipped: bool = False) -> ImageRows:
        """Return an image resized and cropped as preprocess says, which must then have the window's size.

        flipped: its mirror image, left and right exchanged.
        """
        if isinstance(image, np.ndarray) and image.dtype == np.float32:
            if image.shape[:1] != (1,):
                raise ShapeError(f"the float32 image has shape {image.shape}; one image is (1, C, H, W)")
            return tensor_rows(image[..., ::-1] if flipped else image, self._volume)
        preprocess = self.preprocess
        pixels = preprocess.prepare(decode(image, channels=preprocess.channels))
        height, width = self._volume.height, self._volume.width
        if None not in (height, width) and pixels.shape[:2] != (height, width):
            raise ShapeError(
                f"the image is {pixels.shape[0]}x{pixels.shape[1]} after preprocessing; the network's window is"
                f" {height}x{width}: give preprocess=Preprocess(resize=, crop=), or use score_map"
            )
        pixels = pixels[:, ::-1] if flipped else pixels
        if preprocess.slides:
            return self.of_rows(pixels[None])
        return ImageRows(preprocess.apply(pixels).transpose(0, 2, 3, 1))

    def whole(self, image: ImageSource | RowSource) -> ImageRows:
        """Return an image in its own size; also what scenes.open_scene alone reads, such as a Zarr array."""
        channels = self._volume.channels
        if isinstance(image, RowSource) or is_scene(image):
            with scene_rows(image) as source:
                check_pixels(source.height, source.width, source.name)
                return self.of_rows(np.concatenate(list(source.pieces(channels)))[None])
        if isinstance(image, np.ndarray) and image.dtype == np.float32:
            if image.ndim != 4 or image.shape[0] != 1 or image.shape[1] != channels or 0 in image.shape:
                raise ShapeError(f"the float32 image has shape {image.shape}; it must be (1, {channels}, H, W)")
            return self.of_rows(image.transpose(0, 2, 3, 1))
        return self.of_rows(decode(image, channels=self.preprocess.channels)[None])

    def passes(self, image: ImageSource, averaging: Averaging) -> list[ImageRows]:
        """Return every form of an image whose scores are averaged: at each scale, not cropped, and mirrored."""
        if averaging.scales is None:
            sides = (False, True) if averaging.flip else (False,)
            return [self.at_window(image, flipped=flipped) for flipped in sides]
        if isinstance(image, np.ndarray) and image.dtype == np.float32:
            raise InputError("scales resize pixels; a float32 image is taken as already preprocessed")
        preprocess = self.preprocess
        pixels = decode(image, channels=preprocess.channels)
        forms = []
        for scale in averaging.scales:
            resized = replace(preprocess, resize=scale, crop=None).prepare(pixels)[None]
            forms += [self.of_rows(resized), self.of_rows(resized[:, :, ::-1])][: 1 + averaging.flip]
        return forms

    def batch(self, images: list[ImageRows]) -> ImageRows | None:
        """Return images of the same size and kind as one batch, None for none."""
        if not images:
            return None
        if len(images) == 1:
            return images[0]
        if len({(image.rows.shape, image.rows.dtype) for image in images}) > 1:
            raise ShapeError("the images of one call differ in size or kind after preprocessing; give Preprocess(crop)")
        return images[0].of(np.concatenate([image.rows for image in images]))

    def of_rows(self, rows: np.ndarray) -> ImageRows:
        """Return rows (N, H, W, C): float32 as they are, uint8 through the preprocessing."""
        if rows.dtype == np.float32:
            return ImageRows(rows)
        preprocess = self.preprocess
        if not preprocess.slides:
            raise InputError("a per-pixel mean image cannot slide over larger images; it serves classify only")
        return ImageRows(rows, preprocess.table(), preprocess.source_channels())
