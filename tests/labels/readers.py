"""Readers of label formats, as the documents of each describe them: what an importer would make of a file."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
from PIL import Image, ImageDraw

Masks = dict[str, np.ndarray]
"""Of each class its mask, bool (height, width)."""


def read_coco(folder: Path, file: str, classes: list[str], size: tuple[int, int]) -> Masks:
    """By pycocotools."""
    from contextlib import redirect_stdout

    from pycocotools.coco import COCO

    with redirect_stdout(io.StringIO()):
        coco = COCO(folder / "annotations.json")
    [image] = [image for image in coco.imgs.values() if image["file_name"] == file]
    masks = {name: np.zeros(size, bool) for name in classes}
    for annotation in coco.imgToAnns[image["id"]]:
        mask = coco.annToMask(annotation).astype(bool)
        assert annotation["area"] == mask.sum()
        masks[coco.cats[annotation["category_id"]]["name"]] |= mask
    return masks


def read_yolo(folder: Path, file: str, classes: list[str], size: tuple[int, int]) -> Masks:
    """Lines of a class and shares; outlines are painted, cut to whole pixels as by YOLO's own loader.

    Others, supervision for one, round instead, which must come to the same.
    """
    masks = {name: np.zeros(size, np.uint8) for name in classes}
    for line in (folder / "labels" / f"{Path(file).with_suffix('')}.txt").read_text().splitlines():
        category, *shares = line.split()
        assert len(shares) >= 6
        points = np.array(shares, np.float32).reshape(-1, 2)
        assert ((points >= 0) & (points <= 1)).all()
        points *= size[::-1]
        assert np.array_equal(points.astype(np.int32), np.round(points).astype(np.int32))
        cv2.fillPoly(masks[classes[int(category)]], [points.astype(np.int32)], 1)
    return {name: mask > 0 for name, mask in masks.items()}


def read_cvat(folder: Path, file: str, classes: list[str], size: tuple[int, int]) -> Masks:
    """Masks as runs of rows, zeros first; polygons filled by pycocotools, as datumaro does."""
    from pycocotools import mask as rle

    masks = {name: np.zeros(size, bool) for name in classes}
    root = ElementTree.parse(folder / "annotations.xml").getroot()
    assert [label.findtext("name") for label in root.iter("label")] == classes
    [image] = [image for image in root.iter("image") if image.get("name") == file]
    assert (int(image.attrib["height"]), int(image.attrib["width"])) == size
    for shape in image:
        mask = masks[shape.attrib["label"]]
        if shape.tag == "polygon":
            points = [float(value) for pair in shape.attrib["points"].split(";") for value in pair.split(",")]
            mask |= rle.decode(rle.merge(rle.frPyObjects([points], *size))).astype(bool)
            continue
        left, top, width, height = (int(shape.attrib[name]) for name in ("left", "top", "width", "height"))
        runs = [int(run) for run in shape.attrib["rle"].split(",")]
        box = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
        mask[top : top + height, left : left + width] |= box.astype(bool)
    return masks


def read_labelme(folder: Path, file: str, classes: list[str], size: tuple[int, int]) -> Masks:
    """Masks in a box whose last pixel is named; polygons painted by Pillow with their outline."""
    content = json.loads((folder / Path(file).with_suffix(".json")).read_text())
    assert (content["imageHeight"], content["imageWidth"]) == size
    masks = {name: np.zeros(size, bool) for name in classes}
    for shape in content["shapes"]:
        mask = masks[shape["label"]]
        if shape["shape_type"] == "polygon":
            canvas = Image.new("L", size[::-1])
            points = [tuple(point) for point in shape["points"]]
            ImageDraw.Draw(canvas).polygon(points, outline=1, fill=1)
            mask |= np.array(canvas) > 0
            continue
        (left, top), (right, bottom) = shape["points"]
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as box:
            mask[top : bottom + 1, left : right + 1] |= np.array(box) > 0
    return masks


def read_labelstudio(folder: Path, file: str, classes: list[str], size: tuple[int, int]) -> Masks:
    """Brush masks by their packing; polygons in per cent, filled by pycocotools."""
    from pycocotools import mask as rle

    tasks = json.loads((folder / "tasks.json").read_text())
    [task] = [task for task in tasks if task["data"]["image"].endswith(file)]
    masks = {name: np.zeros(size, bool) for name in classes}
    for result in task["predictions"][0]["result"]:
        value = result["value"]
        assert (result["original_height"], result["original_width"]) == size
        if result["type"] == "polygonlabels":
            points = np.array(value["points"]) / 100 * size[::-1]
            found = rle.decode(rle.merge(rle.frPyObjects([points.ravel().tolist()], *size)))
            masks[value["polygonlabels"][0]] |= found.astype(bool)
        else:
            masks[value["brushlabels"][0]] |= unpack(value["rle"]).reshape(*size, 4)[..., 3] > 0
    return masks


def unpack(data: list[int]) -> np.ndarray:
    """The values of `@thi.ng/rle-pack`, by its description."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    values: list[np.ndarray] = []
    while (left := total - sum(map(len, values))) > 0:
        is_run = take(1)
        length = take(sizes[take(2)]) + 1
        assert length <= left
        values.append(
            np.full(length, take(word)) if is_run else np.array([take(word) for _ in range(length)])
        )
    return np.concatenate(values)


def read_geojson(folder: Path, file: str, classes: list[str], size: tuple[int, int]) -> Masks:
    """Rasterised by GDAL, through rasterio."""
    from rasterio.features import rasterize

    content: dict[str, Any] = json.loads((folder / Path(file).with_suffix(".geojson")).read_text())
    masks = {name: np.zeros(size, bool) for name in classes}
    for feature in content["features"]:
        mask = rasterize([feature["geometry"]], out_shape=size).astype(bool)
        assert feature["properties"]["pixels"] == mask.sum()
        masks[feature["properties"]["class"]] |= mask
    return masks


READERS = {
    "coco": read_coco,
    "yolo": read_yolo,
    "cvat": read_cvat,
    "labelme": read_labelme,
    "labelstudio": read_labelstudio,
    "geojson": read_geojson,
}
