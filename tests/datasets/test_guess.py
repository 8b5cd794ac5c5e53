"""What masks mean, however their files store it: by the look of a palette, by the range of a type."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.datasets import SIZE, ids, mask, photo, reason
from unet_batch.datasets import encoding as encoding_module
from unet_batch.datasets.check import check
from unet_batch.datasets.dataset import Dataset
from unet_batch.datasets.encoding import HALF, Encoding, to_levels
from unet_batch.datasets.find import find_dataset
from unet_batch.errors import UsageError
from unet_batch.media.images import StoredMask

TRUTH = ids(*[0] * 20, *[1] * 12)  # less than half is the class, so that swapped ids show
WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (200, 0, 0)


def png(path: Path, values: np.ndarray, bits: int, colours: Sequence[Sequence[int]] = ()) -> None:
    """Write a PNG of few bits, grey or with a palette, as Pillow would not."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape
    unpacked = np.unpackbits(values.astype(np.uint8)[..., None], -1)[..., 8 - bits :]
    rows = np.packbits(unpacked.reshape(height, -1), -1)
    head = struct.pack(">IIBBBBB", width, height, bits, 3 if len(colours) else 0, 0, 0, 0)
    data = chunk(b"IHDR", head)
    if len(colours):
        data += chunk(b"PLTE", bytes(np.array(colours, np.uint8).ravel()))
    data += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data + chunk(b"IEND", b""))


def tiff(path: Path, values: np.ndarray, **options: object) -> None:
    tifffile = pytest.importorskip("tifffile", reason="needs tifffile")
    tifffile.imwrite(path, values, **options)


def indexed(path: Path, values: np.ndarray, colours: Sequence[Sequence[int]]) -> None:
    """Write a palette picture of 8 bits in the format of the path's extension."""
    image = Image.frombytes("P", values.shape[::-1], values.astype(np.uint8).tobytes())
    image.putpalette([part for colour in colours for part in colour])
    image.save(path)


def bmp(path: Path, values: np.ndarray, colours: Sequence[Sequence[int]]) -> None:
    """Write a BMP of one bit."""
    height, width = values.shape
    rows = np.packbits(values.astype(bool)[::-1], -1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    table = b"".join(bytes([blue, green, red, 0]) for red, green, blue in colours)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 1, 0, rows.size, 0, 0, len(colours), 0)
    offset = 14 + len(head) + len(table)
    path.write_bytes(b"BM" + struct.pack("<IHHI", offset + rows.size, 0, 0, offset) + head + table)
    with open(path, "ab") as file:
        file.write(rows.tobytes())


def made(root: Path, *writers: tuple[str, Callable[[Path], None]], toml: str = "") -> Dataset:
    """A dataset with a mask by each writer, in a file of this extension."""
    (root / "masks").mkdir(parents=True)
    for index, (extension, write) in enumerate(writers):
        photo(root / f"images/p{index}.png", index)
        write(root / f"masks/p{index}.{extension}")
    if toml:
        (root / "classes.toml").write_text(toml)
    return find_dataset(str(root))


def read(dataset: Dataset) -> list[np.ndarray]:
    return [dataset.read_mask(pair, SIZE) for pair in dataset.pairs]


WAYS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "8 bits, white first": ("png", lambda p: indexed(p, 1 - TRUTH, (WHITE, BLACK))),
    "8 bits, black first": ("png", lambda p: indexed(p, TRUTH, (BLACK, WHITE))),
    "1 bit": ("png", lambda p: png(p, 1 - TRUTH, 1, (WHITE, BLACK))),
    "2 bits": ("png", lambda p: png(p, 1 - TRUTH, 2, (WHITE, BLACK))),
    "4 bits, far apart": (
        "png",
        lambda p: png(p, 9 - 6 * TRUTH, 4, [RED] * 3 + [WHITE] + [RED] * 5 + [BLACK]),
    ),
    "unused colours": ("png", lambda p: indexed(p, 1 - TRUTH, (WHITE, BLACK, RED, (1, 2, 3)))),
    "nearly black and white": ("png", lambda p: indexed(p, 1 - TRUTH, ((254, 254, 254), (1, 1, 1)))),
    "tinted": ("png", lambda p: indexed(p, 1 - TRUTH, ((255, 255, 240), (0, 0, 10)))),
    "GIF": ("gif", lambda p: indexed(p, 1 - TRUTH, (WHITE, BLACK))),
    "GIF of four colours": ("gif", lambda p: indexed(p, 3 - 2 * TRUTH, (RED, WHITE, RED, BLACK))),
    "BMP": ("bmp", lambda p: indexed(p, 1 - TRUTH, (WHITE, BLACK))),
    "BMP of one bit": ("bmp", lambda p: bmp(p, 1 - TRUTH, (WHITE, BLACK))),
    "TIFF": ("tif", lambda p: indexed(p, 1 - TRUTH, (WHITE, BLACK))),
    "TGA": ("tga", lambda p: indexed(p, 1 - TRUTH, (WHITE, BLACK))),
}


class TestPalettes:
    @pytest.mark.parametrize("way", WAYS)
    def test_white_is_the_class_wherever_the_palette_has_it(self, tmp_path: Path, way: str) -> None:
        dataset = made(tmp_path, WAYS[way], WAYS[way])
        assert dataset.classes.names == ("foreground",)
        assert all(np.array_equal(found, TRUTH) for found in read(dataset))
        assert reason(dataset, "2 have their palette's white elsewhere than at 1") == (
            way != "8 bits, black first"
        )

    def test_files_of_one_dataset_may_differ(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, *WAYS.values(), ("png", lambda p: mask(p, 255 * TRUTH)))
        assert all(np.array_equal(found, TRUTH) for found in read(dataset))

    def test_one_colour_alone_is_what_it_looks_like(self, tmp_path: Path) -> None:
        for index in (0, 1):  # a file may hold the class only, or nothing
            blank = ("png", lambda p, value=index: indexed(p, ids(value), (WHITE, BLACK)))
            dataset = made(tmp_path / str(index), WAYS["1 bit"], blank)
            assert (read(dataset)[1] == 1 - index).all()

    @pytest.mark.parametrize(
        ("colours", "values"),
        [
            ((BLACK, RED), (0, 1)),  # two of which one is another colour
            ((WHITE, BLACK, RED), (0, 1, 2)),
            ([(i, i, i) for i in range(256)], (0, 1, 2)),  # ids under Pillow's own palette look all black
            ([(i, i, i) for i in range(256)], (0, 1, 255)),
        ],
    )
    def test_of_others_the_index_counts(
        self, tmp_path: Path, colours: Sequence[Sequence[int]], values: tuple[int, ...]
    ) -> None:
        way = ("png", lambda p: indexed(p, ids(*values), colours))
        assert all(np.array_equal(found, ids(*values)) for found in read(made(tmp_path, way, way)))

    def test_one_palette_of_colours_makes_all_of_them_ids(self, tmp_path: Path) -> None:
        palette = (WHITE, BLACK, RED)
        dataset = made(
            tmp_path,
            ("png", lambda p: indexed(p, ids(0, 1), palette)),
            ("png", lambda p: indexed(p, ids(0, 1, 2), palette)),
        )
        assert np.array_equal(read(dataset)[0], ids(0, 1))
        assert len(dataset.classes.names) == 3

    def test_an_id_that_a_person_wrote_down_is_an_index(self, tmp_path: Path) -> None:
        toml = '[[class]]\nname = "car"\nid = 1\n'
        dataset = made(tmp_path, WAYS["8 bits, white first"], toml=toml)
        assert np.array_equal(read(dataset)[0], 1 - TRUTH)

    def test_names_without_ids_leave_it_to_the_look(self, tmp_path: Path) -> None:
        for number, names in enumerate((("car",), ("background", "car"))):
            toml = "".join(f'[[class]]\nname = "{name}"\n' for name in names)
            dataset = made(tmp_path / str(number), WAYS["8 bits, white first"], toml=toml)
            assert np.array_equal(read(dataset)[0], TRUTH)

    def test_among_coloured_masks_a_palette_is_its_colours(self, tmp_path: Path) -> None:
        toml = '[[class]]\nname = "a"\ncolor = [0, 0, 0]\n[[class]]\nname = "b"\ncolor = [200, 0, 0]\n'
        colours = np.array([BLACK, RED], np.uint8)
        dataset = made(
            tmp_path,
            ("png", lambda p: mask(p, colours[TRUTH])),
            ("png", lambda p: indexed(p, 1 - TRUTH, (RED, BLACK))),
            toml=toml,
        )
        assert all(np.array_equal(found, TRUTH) for found in read(dataset))

    def test_a_palette_of_colours_beyond_the_sample_is_named(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, *[WAYS["1 bit"]] * 4)
        indexed(tmp_path / "masks/p3.png", TRUTH, (WHITE, RED))
        (finding,) = (found for found in check(dataset).findings if found.severity == "error")
        assert finding.files == ("p3.png: a palette of more than black and white",)


class TestWhiteIsZero:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
    def test_the_stored_numbers_count(self, tmp_path: Path, dtype: type) -> None:
        values = (255 * TRUTH).astype(dtype)
        way = ("tif", lambda p: tiff(p, values, photometric="miniswhite"))
        dataset = made(tmp_path, way, way)
        assert all(np.array_equal(found, TRUTH) for found in read(dataset))
        assert reason(dataset, "2 are TIFF to be shown with 0 as white, and their numbers count")

    def test_ids_are_never_turned_round(self, tmp_path: Path) -> None:
        way = ("tif", lambda p: tiff(p, ids(0, 1, 2).astype(np.uint8), photometric="miniswhite"))
        assert np.array_equal(read(made(tmp_path, way))[0], ids(0, 1, 2))

    @pytest.mark.parametrize("photometric", [0, 1])
    def test_bits_are_read_as_they_are_shown(self, tmp_path: Path, photometric: int) -> None:
        def save(path: Path) -> None:
            Image.fromarray(TRUTH.astype(bool)).save(path, tiffinfo={262: photometric})

        dataset = made(
            tmp_path, ("tif", save), ("pbm", lambda p: Image.fromarray(TRUTH.astype(bool)).save(p))
        )
        assert all(np.array_equal(found, TRUTH) for found in read(dataset))

    def test_files_of_one_dataset_may_differ(self, tmp_path: Path) -> None:
        dataset = made(
            tmp_path,
            *(
                ("tif", lambda p, kind=kind: tiff(p, (255 * TRUTH).astype(np.uint8), photometric=kind))
                for kind in ("miniswhite", "minisblack")
            ),
        )
        assert all(np.array_equal(found, TRUTH) for found in read(dataset))


SOFT = np.clip(np.cumsum(TRUTH, 1) - 3, 0, 4) / 4  # 0, a few steps up, 1


class TestRange:
    @pytest.mark.parametrize(
        ("extension", "values"),
        [
            ("png", TRUTH * 65535),
            ("png", TRUTH * 255),  # bytes that were saved as 16 bits
            ("png", TRUTH),
            ("tif", TRUTH.astype(np.float32)),
            ("tif", (TRUTH * 255).astype(np.float32)),
            ("tif", (TRUTH * 255).astype(np.int32)),
            ("tif", np.where(TRUTH, 0.97, 0.03).astype(np.float32)),
        ],
    )
    def test_two_values_of_any_type(self, tmp_path: Path, extension: str, values: np.ndarray) -> None:
        kind = values.dtype if extension == "tif" else np.uint16
        way = (extension, lambda p: tiff(p, values) if extension == "tif" else mask(p, values, kind))
        dataset = made(tmp_path, way, way)
        assert dataset.classes.names == ("foreground",)
        assert all(np.array_equal(found, TRUTH) for found in read(dataset))

    @pytest.mark.parametrize("bits", [2, 4])
    def test_few_bits_at_both_ends_are_two_values(self, tmp_path: Path, bits: int) -> None:
        dataset = made(tmp_path, ("png", lambda p: png(p, TRUTH * (2**bits - 1), bits)))
        assert np.array_equal(read(dataset)[0], TRUTH)

    @pytest.mark.parametrize("full", [255, 65535, 1.0])
    def test_soft_edges_are_cut_at_half_of_the_range(self, tmp_path: Path, full: float) -> None:
        soft = np.zeros((200, 400))
        soft[:, 150:] = 1
        soft[:, 150:155] = (0.1, 0.3, 0.45, 0.55, 0.9)
        dtype = np.float32 if full == 1 else np.uint8 if full == 255 else np.uint16
        values = (soft * full).astype(dtype)
        photo(tmp_path / "images/a.png", size=soft.shape)
        (tmp_path / "masks").mkdir()
        if full == 1:
            tiff(tmp_path / "masks/a.tif", values)
        else:
            mask(tmp_path / "masks/a.png", values, dtype)
        dataset = find_dataset(str(tmp_path))
        assert np.array_equal(dataset.read_mask(dataset.pairs[0]), soft >= 0.5)
        assert reason(dataset, "soft edges")

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (ids(0, 4095), r"p0\.png: holds 0, 4095; .* up to 4,095"),
            (ids(0, 128, 255), r"p0\.png: holds 0, 128, 255; .* too far apart"),
            (ids(0, 3, 300), r"p0\.png: holds 0, 3, 300; .* numbers of objects"),
        ],
    )
    def test_what_fits_no_rule_is_refused_with_file_and_numbers(
        self, tmp_path: Path, values: np.ndarray, message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            made(tmp_path, ("png", lambda p: mask(p, values, np.uint16)))

    def test_another_range_beyond_the_sample_is_refused(self, tmp_path: Path) -> None:
        dataset = made(tmp_path, *[("png", lambda p: mask(p, 255 * TRUTH))] * 4)
        mask(tmp_path / "masks/p2.png", 4095 * TRUTH, np.uint16)
        (finding,) = (found for found in check(dataset).findings if found.severity == "error")
        assert finding.files == (
            "p2.png: values from 0 to 4095, where its type goes to 65,535: nothing reaches half",
        )

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (np.where(TRUTH, np.nan, 0), "288 of its 768 values are not a number"),
            (np.where(TRUTH, 1.5, 0), "its values, 0 to 1.5, cannot be ids or probabilities"),
            (np.where(TRUTH, -1, 0), "its values, -1 to 0, cannot be ids"),
        ],
    )
    def test_numbers_that_no_mask_holds_are_named(
        self, tmp_path: Path, values: np.ndarray, message: str
    ) -> None:
        dataset = made(tmp_path, *[("png", lambda p: mask(p, 255 * TRUTH))] * 3)
        (tmp_path / "masks/p1.png").unlink()
        tiff(tmp_path / "masks/p1.tif", values.astype(np.float32))
        dataset = find_dataset(str(tmp_path))
        (finding,) = (found for found in check(dataset).findings if found.severity == "error")
        assert finding.kind == "unreadable mask"
        assert finding.files[0].startswith(f"p1.tif: {message}")

    @given(full=st.sampled_from([1, 15, 255, 4095, 65535]), value=st.floats(0, 1))
    def test_half_of_any_range_is_half_of_the_levels(self, full: int, value: float) -> None:
        stored = np.float32(value) if full == 1 else np.uint16(round(value * full))
        level = int(to_levels(np.array([stored]), full)[0])
        assert (level >= HALF) == (float(stored) >= full / 2)
        assert (level == 255) or stored < full


ROAD = """
[[class]]
name = "background"
color = {0}
[[class]]
name = "road"
color = {1}
"""


class TestNamedColours:
    """classes.toml names a colour for each class, and no id."""

    @pytest.mark.parametrize("colours", [(BLACK, RED), (RED, BLACK), (BLACK, WHITE), (WHITE, BLACK)])
    @pytest.mark.parametrize("first", [0, 1])
    @pytest.mark.parametrize("extension", ["png", "gif", "tif", "bmp"])
    def test_a_palette_that_shows_them_is_read_by_them(
        self, tmp_path: Path, colours: tuple[Sequence[int], ...], first: int, extension: str
    ) -> None:
        shown = (colours[first], colours[1 - first])  # the first place may be either's
        way = (extension, lambda p: indexed(p, first ^ TRUTH, shown))
        dataset = made(tmp_path, way, way, toml=ROAD.format(*map(list, colours)))
        assert all(np.array_equal(found, TRUTH) for found in read(dataset))
        assert reason(dataset, "masks hold colors")

    @pytest.mark.parametrize("colours", [(BLACK, WHITE), (WHITE, BLACK), ([9, 9, 9], [200, 200, 200])])
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_grey_levels_that_show_them_are_read_by_them(
        self, tmp_path: Path, colours: tuple[Sequence[int], ...], mode: str
    ) -> None:
        levels = np.array([colours[0][0], colours[1][0]], np.uint8)[TRUTH]
        way = ("png", lambda p: Image.fromarray(levels).convert(mode).save(p))
        dataset = made(tmp_path, way, toml=ROAD.format(*map(list, colours)))
        assert np.array_equal(read(dataset)[0], TRUTH)

    def test_a_palette_of_other_colours_holds_ids(self, tmp_path: Path) -> None:
        way = ("png", lambda p: indexed(p, TRUTH, (BLACK, (0, 0, 200))))
        dataset = made(tmp_path, way, toml=ROAD.format(list(BLACK), list(RED)))
        assert np.array_equal(read(dataset)[0], TRUTH)

    def test_an_id_that_is_written_down_goes_before_the_look(self, tmp_path: Path) -> None:
        toml = ROAD.format(f"{list(RED)}\nid = 1", f"{list(BLACK)}\nid = 0")
        dataset = made(tmp_path, ("png", lambda p: indexed(p, 1 - TRUTH, (RED, BLACK))), toml=toml)
        assert np.array_equal(read(dataset)[0], TRUTH)


def test_colours_that_nobody_has_named_are_told_as_such(tmp_path: Path) -> None:
    shades = np.array([BLACK, RED, (0, 200, 0)], np.uint8)[ids(0, 1, 2)]
    with pytest.raises(UsageError, match="masks hold 3 colours") as raised:
        made(tmp_path, *[("png", lambda p: Image.fromarray(shades).save(p))] * 2)
    assert "classes.toml" in raised.value.hint
    dataset = find_dataset(str(tmp_path), faulty=True)  # as `check-data` does
    (finding,) = (found for found in check(dataset).findings if found.severity == "error")
    assert finding.kind == "unexpected mask values"
    assert "unexpected colour [0, 0, 0] in 264, [200, 0, 0] in 264" in finding.files[0]
    assert "classes.toml" in finding.fix


class TestBackgroundAndOneClass:
    TOML = '[[class]]\nname = "background"\n[[class]]\nname = "road"\n'

    @pytest.mark.parametrize("high", [1, 255])
    def test_masks_are_those_of_one_class(self, tmp_path: Path, high: int) -> None:
        dataset = made(tmp_path, ("png", lambda p: mask(p, high * TRUTH)), toml=self.TOML)
        assert dataset.classes.names == ("road",)
        assert np.array_equal(read(dataset)[0], TRUTH)

    def test_what_fits_no_rule_is_named_file_by_file(self, tmp_path: Path) -> None:
        good, bad = (("png", lambda p, top=top: mask(p, top * TRUTH)) for top in (1, 7))
        dataset = made(tmp_path, good, bad, good, toml=self.TOML)
        (finding,) = (found for found in check(dataset).findings if found.severity == "error")
        assert finding.files[0].startswith("p1.png: unexpected value 7")

    def test_the_background_may_not_come_second_where_white_would_be_it(self, tmp_path: Path) -> None:
        toml = '[[class]]\nname = "road"\n[[class]]\nname = "background"\n'
        dataset = made(tmp_path, ("png", lambda p: mask(p, 255 * TRUTH)), toml=toml)
        assert [found.kind for found in check(dataset).findings if found.severity == "error"]


class TestBits:
    @pytest.mark.parametrize("options", [{}, {"metadata": None}, {"software": "mine"}, {"ome": True}])
    def test_an_array_of_tifffile_holds_its_numbers(self, tmp_path: Path, options: dict[str, object]) -> None:
        """It asks viewers to show True, which is 1, as black."""
        way = ("tif", lambda p: tiff(p, TRUTH.astype(bool), **options))
        dataset = made(tmp_path, way, way)
        assert all(np.array_equal(found, TRUTH) for found in read(dataset))
        assert reason(dataset, "2 are TIFF to be shown with 0 as white, and their numbers count")

    def test_of_other_programs_the_look_counts(self, tmp_path: Path) -> None:
        def write(path: Path) -> None:
            tiff(path, TRUTH == 0, metadata=None, software="scanner")

        dataset = made(tmp_path, ("tif", write))
        assert np.array_equal(read(dataset)[0], TRUTH)
        assert reason(dataset, "1 are TIFF of bits to be shown with 0 as white, and are read so")


class TestMajority:
    def test_a_few_others_do_not_change_what_the_most_mean(self, tmp_path: Path) -> None:
        """255 would become void, and everything that is marked with it."""
        good = ("png", lambda p: mask(p, 255 * TRUTH))
        dataset = made(tmp_path, good, good, good, ("png", lambda p: mask(p, ids(0, 5, 7, 8))), good)
        assert reason(dataset, "masks hold 0 and 255: one class, called foreground; 1 of 5 hold other values")
        (finding,) = (found for found in check(dataset).findings if found.severity == "error")
        assert finding.kind == "unexpected mask values"
        assert len(finding.files) == 1
        assert finding.files[0].startswith("p3.png: unexpected value 5 in 192, 7 in 192, 8 in 192")

    def test_the_file_that_is_named_holds_what_is_said(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"p1\.png: holds 0, 90, 180; "):
            made(
                tmp_path,
                ("png", lambda p: mask(p, ids(0))),
                ("png", lambda p: mask(p, ids(0, 90, 180))),
                ("png", lambda p: mask(p, ids(0, 90))),
            )


SAID = 'values = "probability"\n[[class]]\nname = "car"\n'
RAMP = np.linspace(0, 1, SIZE[1])[None].repeat(SIZE[0], 0)


class TestProbabilities:
    """classes.toml says that masks are probabilities."""

    @pytest.mark.parametrize(
        ("extension", "write"),
        [
            ("png", lambda p: mask(p, np.rint(RAMP * 255))),
            ("png", lambda p: mask(p, np.rint(RAMP * 65535), np.uint16)),
            ("png", lambda p: png(p, np.rint(RAMP * 15), 4)),
            ("tif", lambda p: tiff(p, RAMP.astype(np.float32))),
            ("png", lambda p: Image.fromarray(np.rint(RAMP * 255).astype(np.uint8)).convert("RGB").save(p)),
        ],
        ids=["8 bits", "16 bits", "4 bits", "fractions", "grey as RGB"],
    )
    def test_are_what_the_file_says_and_cut_at_half(
        self, tmp_path: Path, extension: str, write: Callable[[Path], None]
    ) -> None:
        dataset = made(tmp_path, (extension, write), toml=SAID)
        found = dataset.decode_mask(dataset.pairs[0], SIZE)
        assert found.levels is not None
        assert found.levels.dtype == np.uint8
        steps = 15 if extension == "png" and dataset.reasons[-2].count("0 to 15,") else 255
        assert np.array_equal(found.levels, np.rint(np.rint(RAMP * steps) * (255 / steps)))
        assert np.array_equal(read(dataset)[0], RAMP >= 0.5)
        assert dataset.classes.names == ("car",)
        assert reason(dataset, "masks are probabilities of car, 0 to ")

    @pytest.mark.parametrize(
        "values", [255 * TRUTH, TRUTH, np.rint(RAMP * 100)], ids=["0, 255", "0, 1", "low"]
    )
    def test_are_so_whatever_the_masks_look_like(self, tmp_path: Path, values: np.ndarray) -> None:
        dataset = made(tmp_path, ("png", lambda p: mask(p, values)), toml=SAID)
        levels = dataset.decode_mask(dataset.pairs[0]).levels
        assert levels is not None
        assert np.array_equal(levels, values)

    def test_are_never_guessed(self, tmp_path: Path) -> None:
        soft = np.zeros((100, 100))
        soft[:, 40:46], soft[:, 46:] = np.arange(1, 7) / 7, 1
        photo(tmp_path / "images/a.png", size=soft.shape)
        mask(tmp_path / "masks/a.png", np.rint(255 * soft))
        (tmp_path / "classes.toml").write_text(SAID.partition("\n")[2])
        dataset = find_dataset(str(tmp_path))
        assert reason(dataset, "soft edges")
        assert dataset.decode_mask(dataset.pairs[0]).levels is None

    def test_that_cannot_be_anything_else_are_hinted_at(self, tmp_path: Path) -> None:
        noise = np.random.default_rng(0).integers(0, 256, SIZE)
        for number, toml in enumerate(("", SAID.partition("\n")[2])):
            with pytest.raises(UsageError) as raised:
                made(tmp_path / str(number), ("png", lambda p: mask(p, noise)), toml=toml)
            assert 'values = "probability" in classes.toml' in raised.value.hint

    def test_of_a_background_and_one_class_are_those_of_the_class(self, tmp_path: Path) -> None:
        toml = SAID + '[[class]]\nname = "background"\n'
        assert made(tmp_path, ("png", lambda p: mask(p, 255 * RAMP)), toml=toml).classes.names == ("car",)

    @pytest.mark.parametrize(("full", "dtype"), [(255, np.uint8), (65535, np.uint16)])
    def test_may_leave_out_pixels_of_a_value(self, tmp_path: Path, full: int, dtype: type) -> None:
        values = np.rint(RAMP * full)
        values[:4] = 7
        dataset = made(tmp_path, ("png", lambda p: mask(p, values, dtype)), toml="void = 7\n" + SAID)
        found = read(dataset)[0]
        assert np.array_equal(found == 255, values == 7)
        assert np.array_equal(found[4:] == 1, RAMP[4:] >= 0.5)

    @given(st.sampled_from([1, 15, 255, 4095, 65535]), st.lists(st.floats(0, 1), min_size=2, max_size=40))
    def test_are_in_order_and_exact_at_both_ends(self, full: int, values: list[float]) -> None:
        scaled = np.sort(np.array([0, *values, 1])) * full
        if full > 1:
            scaled = np.rint(scaled).astype(np.uint8 if full <= 255 else np.uint16)
        stored = StoredMask(scaled.astype(np.float32) if full == 1 else scaled, "grey", full)
        encoding = Encoding("grey", {}, "probability")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(encoding_module, "read_values", lambda path: stored)
            found = encoding.decode("a.png")
        assert found.levels is not None
        levels = found.levels.astype(int)
        assert (np.diff(levels) >= 0).all()
        assert np.abs(levels / 255 - stored.values / full).max() <= 0.5 / 255 + 1e-6
        assert (levels[0], levels[-1]) == (0, 255)
        assert np.array_equal(found.ids, stored.values >= full / 2)

    @pytest.mark.parametrize(
        ("toml", "message"),
        [
            (SAID.replace("probability", "soft"), "values = 'soft' is unknown"),
            (SAID + "id = 1\n", "beside an id"),
            (SAID + '[[class]]\nname = "road"\n', 'values = "probability" beside 2 classes'),
            ("void = 255\n" + SAID, "void = 255 is also the probability 1"),
            ("void = [9, 0]\n" + SAID, "void = 0 is also the probability 0"),
            ('[[class]]\nname = "car"\nvalues = "probability"\n', r"values stands below \[\[class\]\]"),
            ('[[class]]\nname = "car"\nvoid = 255\n', r"void stands below \[\[class\]\]"),
        ],
    )
    def test_are_said_in_one_way(self, tmp_path: Path, toml: str, message: str) -> None:
        with pytest.raises(UsageError, match=message) as raised:
            made(tmp_path, ("png", lambda p: mask(p, RAMP * 255)), toml=toml)
        assert "classes.toml" in raised.value.message
        assert raised.value.hint

    @pytest.mark.parametrize(
        ("extension", "write", "kind", "message"),
        [
            (
                "png",
                lambda p: indexed(p, TRUTH, (BLACK, WHITE)),
                "unexpected mask values",
                "a palette, where",
            ),
            (
                "tif",
                lambda p: tiff(p, (TRUTH * 99).astype(np.int32)),
                "unexpected mask values",
                "values from 0 to 99 of a type without a highest one",
            ),
            (
                "png",
                lambda p: Image.fromarray(np.array([BLACK, RED], np.uint8)[TRUTH]).save(p),
                "unreadable mask",
                "is coloured, other masks hold probabilities",
            ),
        ],
        ids=["palette", "32 bits", "colours"],
    )
    def test_of_no_known_range_are_named(
        self, tmp_path: Path, extension: str, write: Callable[[Path], None], kind: str, message: str
    ) -> None:
        good = ("png", lambda p: mask(p, RAMP * 255))
        dataset = made(tmp_path, good, good, (extension, write), toml=SAID)
        (finding,) = (found for found in check(dataset).findings if found.severity == "error")
        assert finding.kind == kind
        assert finding.files[0].startswith(f"p2.{extension}: {message}")
