"""Photographs with their foreground as batches: read, transformed together with masks, boxes and infills, and loaded.

Published preparation (Chang, Adam and Goldenberg 2021, code): IN-9 and Waterbirds are resized to 256 x 256 and cropped
to 224 x 224 at random so that some of the foreground stays ("squash"), CCT's shorter side to 224 ("short"); half the
images are mirrored. For evaluation an image is squashed to 224 x 224. All sizes scale with `size`.

Every image of every pass draws from a random stream of its own, so that neither the number of loading processes nor
the size of a batch changes what is drawn.
"""

from pathlib import Path

import numpy
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

import datasets
import experiment
from experiment import UserError
from public_sets import open_image
from robust_training.batch import Batch, boxes_to_masks, from_masks, rectangles

CROPS = 20  # draws of a crop before one is laid around a pixel of the foreground
RESIZES = ("squash", "short")
SUFFIXES = (".jpg", ".png", ".JPEG")  # of infills

# --- reading one image ----------------------------------------------------------------------------


def _picture(path, mode):
    """An image file as a numpy array in a PIL mode, "RGB" or "L"; UserError where it is absent or no image."""
    return numpy.array(open_image(path).convert(mode))


def read_image(path):
    """An image (3, H, W), uint8. Pixels are as stored: boxes and masks know nothing of a camera's rotation flag."""
    return torch.from_numpy(_picture(path, "RGB")).permute(2, 0, 1).contiguous()


def read_outline(sample, image):
    """The foreground (1, H, W), boolean, of a formats.Sample of kind pair, npy or png, at the size of its image.

    pair: pixels that are exactly 0 in the image without foreground and something else in the image (3, H, W) itself.
    Raises UserError where the mask cannot be read or has another size.
    """
    if sample.kind == "npy":
        try:
            mask = torch.from_numpy(numpy.load(sample.mask, allow_pickle=False) != 0)
        except Exception as error:  # numpy raises many kinds for damaged files and refuses those that hold objects
            raise UserError(f"{sample.mask} is not a mask that can be read ({type(error).__name__})") from None
    elif sample.kind == "png":
        mask = torch.from_numpy(_picture(sample.mask, "L") > 0)
    else:
        without = read_image(sample.mask)
        _same_size(sample.mask, without, sample.path, image)
        mask = (without == 0).all(0) & (without != image).any(0)
    if mask.ndim != 2:
        raise UserError(f"{sample.mask} should be an array of rows and columns, and is of shape {tuple(mask.shape)}")
    _same_size(sample.mask, mask, sample.path, image)
    return mask[None]


def _same_size(path, part, image_path, image):
    if part.shape[-2:] != image.shape[-2:]:
        raise UserError(f"{path} is of {_size(part)} pixels and its image {image_path} of {_size(image)}")


def _size(part):
    return " x ".join(map(str, reversed(part.shape[-2:])))


def read_infill(folder, name, path, image):
    """The precomputed infill (3, H, W), uint8, of the image (3, H, W) at path: folder/name.jpg or .png, of its size."""
    file = next((file for file in (Path(folder) / f"{name}{suffix}" for suffix in SUFFIXES) if file.is_file()), None)
    if file is None:
        raise UserError(f"{path} has no infill: neither {Path(folder) / name}.jpg nor .png is there")
    infill = read_image(file)
    _same_size(file, infill, path, image)
    return infill


# --- transforming what belongs together -----------------------------------------------------------


def resize(parts, size, how, augment):
    """Parts of one image, tv_tensors by name, at the size that is cropped, or that is evaluated. Antialiased."""
    if augment and how == "short":
        return v2.Resize([size], antialias=True)(parts)
    side = size * 8 // 7 if augment else size  # 256 for 224 (published)
    return v2.Resize([side, side], antialias=True)(parts)


def window(mask, size, stream):
    """(top, left) of a crop of size x size that keeps some of the mask (1, H, W), where there is any to keep.

    Uniform over the places that do, by drawing CROPS times; then around one pixel of the mask, as the border allows.
    """
    room = [side - size for side in mask.shape[1:]]
    kept = mask.any()
    for _ in range(CROPS):
        top, left = (int(torch.randint(most + 1, (), generator=stream)) for most in room)
        if not kept or mask[:, top:top + size, left:left + size].any():
            return top, left
    pixels = mask[0].nonzero()
    pixel = pixels[int(torch.randint(len(pixels), (), generator=stream))].tolist()
    return tuple(min(max(at - size // 2, 0), most) for at, most in zip(pixel, room, strict=True))


def crop_and_mirror(parts, mask, size, stream):
    """(parts, mask), cropped to size x size at one place and mirrored or not, all alike."""
    top, left = window(mask, size, stream)
    mirrored = bool(torch.randint(2, (), generator=stream))

    def both(part):
        part = v2.functional.crop(part, top, left, size, size)
        return v2.functional.horizontal_flip(part) if mirrored else part

    return {key: both(part) for key, part in parts.items()}, both(mask)


def box_mask(boxes, height, width):
    """(1, height, width), boolean: the union of boxes (K, 4), each (left, top, right, bottom) in pixels.

    Those that come to nothing in whole pixels are dropped.
    """
    limit = torch.tensor([width, height, width, height])
    corners = boxes.as_subclass(torch.Tensor).round().clamp(torch.zeros(4), limit)
    left, top, right, bottom = corners.unbind(1)
    return boxes_to_masks(corners[(left < right) & (top < bottom)], height, width)


def _normalise(image):
    return datasets.from_bytes(image.as_subclass(torch.Tensor))


# --- a split --------------------------------------------------------------------------------------


class Photos:
    """A split as a source of Batches.

    samples  a list of formats.Sample
    size     side of the images in a Batch
    resize   "squash" or "short": how an image is resized before it is cropped for training
    train    whether a shuffled pass crops and mirrors
    infills  folder of images with the foreground painted over, name.jpg or .png of the image's size, or None. Where
             no foreground is known, the infill in a Batch is the image itself
    known    whether the foreground is read at all
    workers  processes that load; 0 loads in this one
    seed     of the order and of what is drawn for each image

    len, labels (N,) and places (N,) are those of the samples. Raises UserError for settings that do not go together.
    """

    def __init__(self, samples, size=224, resize="squash", train=False, infills=None, known=True, workers=0, seed=0):
        if resize not in RESIZES:
            raise UserError(f"resize can be {', '.join(RESIZES)}, not {resize!r}")
        if infills is not None and not known:
            raise UserError("infills replace a foreground: it must be known")
        if infills is not None and not Path(infills).is_dir():
            raise UserError(f"{infills} is missing: the folder of precomputed infills, one name.jpg or .png an image")
        self.samples, self.size, self.resize, self.train = samples, size, resize, train
        self.infills, self.known, self.workers, self.seed = infills, known, workers, seed
        self.labels = torch.tensor([sample.label for sample in samples], dtype=torch.int64)
        self.places = torch.tensor([sample.place for sample in samples], dtype=torch.int64)

    def __len__(self):
        return len(self.samples)

    def first(self, n):
        """The first n images, as Photos."""
        return Photos(self.samples[:n], self.size, self.resize, self.train, self.infills, self.known, self.workers,
                      self.seed)  # fmt: skip

    def batches(self, size, stream_seed=None, shares=None):
        """Batches of size images, the last one of what is left, on the CPU, in the order of datasets.order_of.

        stream_seed None: in order, squashed. Else (say, the number of the epoch): shuffled and, for training, cropped
        and mirrored, from streams of this seed. Raises UserError at the first image with something wrong.
        """
        order = datasets.order_of(len(self), self.seed, stream_seed, shares)
        loader = DataLoader(_Pictures(self, stream_seed), batch_size=size, sampler=order.tolist(),
                            num_workers=self.workers, collate_fn=self._collate, pin_memory=torch.cuda.is_available(),
                            generator=experiment.generator(self.seed, "loader"))  # else it draws from the global one
        for parts in loader:
            if isinstance(parts, UserError):
                raise parts
            yield Batch(*parts)

    def example(self, index, stream_seed=None):
        """(image (3, S, S), mask (1, S, S), whether boxes mark it, infill (3, S, S) or None) of one sample."""
        parts = self._read(self.samples[index])
        augment = self.train and stream_seed is not None
        parts = resize(parts, self.size, self.resize, augment)
        height, width = parts["image"].shape[1:]
        boxed = "boxes" in parts
        if boxed:  # whole pixels from here on: a crop or a mirror cannot round a border differently
            mask = box_mask(parts.pop("boxes"), height, width)
        else:
            mask = parts.pop("mask", torch.zeros(1, height, width)).bool()
        mask = tv_tensors.Mask(mask)
        if augment:
            stream = experiment.generator(self.seed, f"{stream_seed}/{index}")
            parts, mask = crop_and_mirror(parts, mask, self.size, stream)
        infill = _normalise(parts["infill"]) if "infill" in parts else None
        return _normalise(parts["image"]), mask.as_subclass(torch.Tensor), boxed, infill

    def _read(self, sample):
        """Image, infill, and boxes or mask of one sample, at its own size, as tv_tensors by name."""
        image = read_image(sample.path)
        height, width = image.shape[1:]
        parts, known = {"image": tv_tensors.Image(image)}, False
        if self.known and sample.boxes:
            boxes = torch.tensor(sample.boxes) * torch.tensor([width, height, width, height])
            parts["boxes"] = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
            known = True
        elif self.known and sample.mask is not None:
            mask = read_outline(sample, image)
            parts["mask"], known = tv_tensors.Mask(mask.to(torch.uint8)), bool(mask.any())
        if self.infills is not None:
            infill = read_infill(self.infills, sample.name, sample.path, image) if known else image
            parts["infill"] = tv_tensors.Image(infill)
        return parts

    def _collate(self, examples):
        """The parts of a Batch as a plain tuple; or the first UserError, which a process cannot raise in another."""
        wrong = [example for example in examples if isinstance(example, UserError)]
        if wrong:
            return wrong[0]
        indices, images, masks, boxed, infills = zip(*examples, strict=True)
        masks, boxed, index = torch.stack(masks), torch.tensor(boxed), torch.tensor(indices)
        batch = from_masks(torch.stack(images), self.labels[index], self.places[index], masks,
                           None if infills[0] is None else torch.stack(infills))
        around = torch.where(boxed[:, None, None, None], masks, rectangles(masks))
        return tuple(batch.but(rectangles=around))


class _Pictures(Dataset):
    """The images of one pass, by index, for a DataLoader."""

    def __init__(self, photos, stream_seed):
        self.photos, self.stream_seed = photos, stream_seed

    def __getitem__(self, index):
        try:
            return index, *self.photos.example(index, self.stream_seed)
        except UserError as error:
            return error

    def __len__(self):
        return len(self.photos)
