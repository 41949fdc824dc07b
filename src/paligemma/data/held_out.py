"""Which records share images, and which are held out for validation.

Images are compared by content, not by name: the same image under two names, in two splits or in
several questions counts once, so that no model is scored on an image that it was trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from paligemma.data.record import Record
from paligemma.errors import ImageError

ImageKeys = Mapping[str, tuple[str, ...]]
"""Record id -> digests of its images."""


def image_keys(records: Sequence[Record]) -> ImageKeys:
    """Reads the files of all images; an image that cannot be read is one of a kind."""
    keys: dict[str, tuple[str, ...]] = {}
    for record in records:
        try:
            keys[record.record_id] = record.image_keys()
        except ImageError:
            keys[record.record_id] = (hashlib.sha256(record.record_id.encode()).hexdigest(),)
    return keys


def held_out_ids(keys: ImageKeys, share: float) -> frozenset[str]:
    """The ids of this share of the records, at least one, together with all that share an image.

    They are those whose images have the smallest digests, so that a record stays where it is when
    others are added or removed.
    """
    ordered = sorted(_groups(keys), key=lambda group: min(keys[i] for i in group))
    count = max(1, round(share * len(keys)))
    ids: list[str] = []
    for group in ordered:
        if len(ids) >= count:
            break
        ids += group
    return frozenset(ids)


def _groups(keys: ImageKeys) -> list[list[str]]:
    """Record ids, in groups that share no image with each other."""
    parent: dict[str, str] = {}

    def root(image: str) -> str:
        while parent.setdefault(image, image) != image:
            parent[image] = parent[parent[image]]
            image = parent[image]
        return image

    for images in keys.values():
        for image in images[1:]:
            parent[root(image)] = root(images[0])
    groups: dict[str, list[str]] = {}
    for record_id, images in keys.items():
        groups.setdefault(root(images[0]), []).append(record_id)
    return list(groups.values())


def shared_ids(keys: ImageKeys, others: ImageKeys) -> list[str]:
    """The ids of records whose images are among the others' too."""
    images = {image for group in others.values() for image in group}
    return [record_id for record_id, group in keys.items() if images.intersection(group)]


def num_images(keys: ImageKeys) -> int:
    """Number of different images."""
    return len({image for group in keys.values() for image in group})
