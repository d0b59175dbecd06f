"""Edits: what is kept is the encoded image's exactly, the rest what the parts make by hand."""

import itertools
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from lpd.data.transforms import center_crop
from lpd.editing import Edited, Editor
from lpd.errors import InputError
from lpd.generation import ImageGenerator, Preview
from lpd.models.lpd import LPD
from lpd.orders.group_sizes import GroupSizes
from lpd.orders.registry import OrderConfig, examples, make_plan
from lpd.orders.request import OrderOptions
from lpd.randomness import Stream, token_uniforms, torch_seed
from lpd.sampling.canvas import OutpaintOptions
from lpd.sampling.config import SamplingConfig
from lpd.sampling.editing import EditOptions, EditSettings, kept_at_random
from lpd.sampling.sampler import Sampler
from lpd.tokenizer.vq_tokenizer import VQTokenizer, to_pixels

SAMPLING = SamplingConfig(cfg=2.0)
STEPS = 8
HOW = EditSettings(decoding=OrderOptions(generation_steps=STEPS), sampling=SAMPLING, seed=4)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> VQTokenizer:
    return VQTokenizer.from_pretrained(tokenizer_folder, torch.device("cpu"))


@pytest.fixture(scope="module")
def editor(tiny_model: LPD, tokenizer: VQTokenizer) -> Editor:
    return Editor(ImageGenerator(tiny_model, tokenizer, batch_size=3))


@pytest.fixture(scope="module")
def by_hand(tiny_model: LPD, tokenizer: VQTokenizer) -> "ByHand":
    return ByHand(tiny_model, tokenizer)


def noise(seed: int, width: int = 16, height: int = 16) -> Image.Image:
    random = np.random.default_rng(seed)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


class ByHand:
    """The obvious twin: one image at a time, by the sampler and the tokenizer alone."""

    def __init__(self, model: LPD, tokenizer: VQTokenizer) -> None:
        self.sampler, self.tokenizer = Sampler(model, 1), tokenizer

    def encode(self, image: Image.Image) -> np.ndarray:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        return self.tokenizer.encode(pixels / 127.5 - 1)[0].numpy()

    def fill(
        self, codes: np.ndarray, known: np.ndarray, label: int | None, seed: int, index: int
    ) -> np.ndarray:
        """(N,) codes of which (N,) are known, without the gaps."""
        alone = np.array([index])
        plan = make_plan(OrderConfig(), (4, 4), sizes_left(known), seed, alone, known)
        filled = self.sampler(
            torch.tensor([3 if label is None else label]),
            plan,
            torch.from_numpy(token_uniforms(seed, alone, 16)[:, known.sum() :]),
            SAMPLING,
            torch.from_numpy(codes[None]),
        )
        return filled[0].numpy()


def sizes_left(known: np.ndarray) -> GroupSizes:
    """Group sizes by the formulas: the cosine's passes from where it is when so much is known."""
    x = 2 / math.pi * math.acos(1 - known.mean())
    count = min(max(1, math.ceil(STEPS * (1 - x) - 1e-9)), int((~known).sum()))
    shares = 1 - np.cos(math.pi / 2 * (x + (1 - x) * np.arange(count + 1) / count))
    ends = np.floor(16 * shares + 0.5 + 1e-9).astype(int)
    assert (np.diff(ends) > 0).all()
    return tuple(np.diff(ends).tolist())


def masks_of(*cells: list[int]) -> list[np.ndarray]:
    """Masks of 16 x 16 pixels, a pixel in each of some cells."""
    masks = []
    for each in cells:
        mask = np.zeros((16, 16), dtype=bool)
        mask[[4 * (cell // 4) + 1 for cell in each], [4 * (cell % 4) + 2 for cell in each]] = True
        masks.append(mask)
    return masks


IMAGES = [noise(seed) for seed in range(5)]
CELLS = [[5], list(range(15)), [0, 3, 12], [7, 8, 9], [5]]
MASKS = masks_of(*CELLS)
LABELS = [2, None, 0, 1, 1]


@pytest.mark.parametrize("keep_painted", [False, True])
def test_inside_is_what_the_sampler_makes_and_outside_what_the_image_has(
    editor: Editor, by_hand: ByHand, keep_painted: bool
) -> None:
    indices = np.arange(20, 25)
    edited = editor.inpaint(
        IMAGES, MASKS, LABELS, HOW, keep_painted=keep_painted, image_indices=indices
    )
    for row, (image, cells) in enumerate(zip(IMAGES, CELLS, strict=True)):
        known = np.isin(np.arange(16), cells, invert=not keep_painted)
        codes = by_hand.encode(image)
        np.testing.assert_array_equal(edited.known[row], known)
        np.testing.assert_array_equal(edited.codes[row][known], codes[known])
        expected = by_hand.fill(codes, known, LABELS[row], 4, int(indices[row]))
        np.testing.assert_array_equal(edited.codes[row], expected)
        np.testing.assert_array_equal(edited.sources[row], np.array(image).transpose(2, 0, 1))
        assert edited.num_passes[row] == len(sizes_left(known))
    pixels = to_pixels(by_hand.tokenizer.decode(torch.from_numpy(edited.codes))).numpy()
    assert np.abs(pixels.astype(int) - edited.images).max() <= 1
    assert edited.finite.all()
    assert edited.grid == (4, 4)


def same(one: Edited, other: Edited, rows: list[int]) -> None:
    """That one edit is some rows of another."""
    for name in ("codes", "known", "finite", "sources", "pass_of_cell", "num_passes"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name)[rows], name)
    assert np.abs(one.images.astype(int) - other.images[rows]).max() <= 1


@settings(deadline=None, max_examples=10)
@given(
    masks=st.lists(
        arrays(np.bool_, (16, 16), elements=st.booleans(), fill=st.just(False)).filter(
            lambda mask: mask.any() and not _cells(mask).all()
        ),
        min_size=1,
        max_size=5,
    )
)
def test_masks_of_any_shape_touch_nothing_outside(
    editor: Editor, by_hand: ByHand, masks: list[np.ndarray]
) -> None:
    count = len(masks)
    edited = editor.inpaint(IMAGES[:count], masks, LABELS[:count], HOW)
    for row, mask in enumerate(masks):
        known = ~_cells(mask)
        np.testing.assert_array_equal(edited.known[row], known)
        codes = by_hand.encode(IMAGES[row])
        np.testing.assert_array_equal(edited.codes[row][known], codes[known])
        assert ((edited.pass_of_cell[row] == -1) == known).all()
    last = count - 1
    alone = editor.inpaint(
        [IMAGES[last]], [masks[last]], [LABELS[last]], HOW, image_indices=np.array([last])
    )
    same(alone, edited, [last])


def _cells(mask: np.ndarray) -> np.ndarray:
    return mask.reshape(4, 4, 4, 4).any(axis=(1, 3)).flatten()


def test_another_class_changes_the_inside_alone(editor: Editor) -> None:
    masks = masks_of(*[list(range(4, 16))] * 3)
    edits = [editor.inpaint(IMAGES[:3], masks, [label] * 3, HOW).codes for label in (0, 2)]
    np.testing.assert_array_equal(edits[0][:, :4], edits[1][:, :4])
    assert (edits[0][:, 4:] != edits[1][:, 4:]).any()


def test_another_seed_and_another_index_are_other_edits(editor: Editor) -> None:
    masks = masks_of(list(range(1, 16)))
    first = editor.inpaint(IMAGES[:1], masks, [0], HOW)
    settings_of = [
        EditSettings(decoding=HOW.decoding, sampling=SAMPLING, seed=seed) for seed in (4, 5)
    ]
    again, seed = (editor.inpaint(IMAGES[:1], masks, [0], how) for how in settings_of)
    index = editor.inpaint(IMAGES[:1], masks, [0], HOW, image_indices=np.array([1]))
    same(first, again, [0])
    assert (first.codes != seed.codes).any()
    assert (first.codes != index.codes).any()


@pytest.mark.parametrize("order", examples((4, 4)))
def test_any_order_edits(editor: Editor, by_hand: ByHand, order: str) -> None:
    """Those with passes of their own too, though other cells are known in every image."""
    how = EditSettings(decoding=OrderOptions(order=order, generation_steps=STEPS), seed=1)
    edited = editor.inpaint(IMAGES, MASKS, LABELS, how)
    for row, image in enumerate(IMAGES):
        known = edited.known[row]
        np.testing.assert_array_equal(edited.codes[row][known], by_hand.encode(image)[known])
        passes = edited.pass_of_cell[row]
        assert set(passes[~known]) == set(range(edited.num_passes[row]))
        alone = editor.inpaint(
            [image], [MASKS[row]], [LABELS[row]], how, image_indices=np.array([row])
        )
        same(alone, edited, [row])


def test_images_are_prepared_as_in_training(editor: Editor, by_hand: ByHand) -> None:
    """A large image and its mask go through the same crop."""
    image = noise(0, 90, 60)
    mask = np.zeros((60, 90), dtype=bool)
    mask[15, 45] = True  # above the middle of the square, to the right of its cells' border
    edited = editor.inpaint([image], [mask], [1], HOW)
    np.testing.assert_array_equal(
        edited.sources[0], np.array(center_crop(image, 16)).transpose(2, 0, 1)
    )
    codes = by_hand.encode(center_crop(image, 16))
    np.testing.assert_array_equal(np.flatnonzero(~edited.known[0]), [6])
    np.testing.assert_array_equal(edited.codes[0][edited.known[0]], codes[edited.known[0]])


def test_painted_images_are_masks(editor: Editor) -> None:
    layer = Image.new("RGBA", (16, 16))
    layer.putpixel((6, 5), (0, 0, 0, 255))
    expected = editor.inpaint(IMAGES[:1], MASKS[:1], [0], HOW)
    same(editor.inpaint(IMAGES[:1], [layer], [0], HOW), expected, [0])


@pytest.mark.parametrize(
    "image",
    [
        IMAGES[0].convert("RGBA"),
        IMAGES[0].convert("CMYK"),
        IMAGES[0].convert("L"),
        Image.fromarray(np.array(IMAGES[0].convert("L")).astype(np.uint16) * 257),
    ],
    ids=lambda image: image.mode,
)
def test_images_of_other_modes_are_converted(editor: Editor, image: Image.Image) -> None:
    grey = image.mode in {"L", "I;16"}
    rgb = IMAGES[0].convert("L").convert("RGB") if grey else image.convert("RGB")
    expected = editor.inpaint([rgb], MASKS[:1], [0], HOW)
    same(editor.inpaint([image], MASKS[:1], [0], HOW), expected, [0])


def test_a_small_image_is_enlarged_and_that_is_said(editor: Editor) -> None:
    small = noise(0, 9, 12)
    with pytest.warns(UserWarning, match="image 1 is of 9 x 12 pixels, smaller than the 16 x 16"):
        pixels = editor.prepare([IMAGES[0], small])
    expected = np.array(center_crop(small, 16)).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels[1], expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        editor.prepare(IMAGES)


@pytest.mark.parametrize("feather", [1, 3, 6])
def test_far_from_the_mask_pixels_are_the_source_s(editor: Editor, feather: int) -> None:
    how = EditSettings(
        decoding=HOW.decoding, sampling=SAMPLING, editing=EditOptions(feather=feather), seed=4
    )
    plain = editor.inpaint(IMAGES[:1], MASKS[:1], [0], HOW)  # cell 5: pixels 4 to 7
    edited = editor.inpaint(IMAGES[:1], MASKS[:1], [0], how)
    np.testing.assert_array_equal(edited.codes, plain.codes)
    image, inside = edited.images[0], slice(4, 8)
    np.testing.assert_array_equal(image[:, inside, inside], plain.images[0][:, inside, inside])
    far = np.ones((16, 16), dtype=bool)
    far[max(0, 5 - feather) : 7 + feather, max(0, 5 - feather) : 7 + feather] = False
    np.testing.assert_array_equal(image[:, far], edited.sources[0][:, far])
    assert (plain.images[0][:, far] != edited.sources[0][:, far]).mean() > 0.5


def test_a_variation_keeps_a_share_or_what_is_chosen(editor: Editor, by_hand: ByHand) -> None:
    indices = np.array([7, 3])
    edited = editor.variations(IMAGES[:2], [0, 1], HOW, keep=0.25, image_indices=indices)
    np.testing.assert_array_equal(edited.known, kept_at_random(4, indices, 0.25, 16))
    for row, image in enumerate(IMAGES[:2]):
        codes = by_hand.encode(image)
        expected = by_hand.fill(codes, edited.known[row], row, 4, int(indices[row]))
        np.testing.assert_array_equal(edited.codes[row], expected)
    chosen = np.arange(16) % 3 == 0
    for keep in (chosen, chosen.reshape(4, 4), np.stack([chosen] * 2)):
        again = editor.variations(IMAGES[:2], [0, 1], HOW, keep=keep)
        np.testing.assert_array_equal(again.known, np.stack([chosen] * 2))


def test_within_the_model_s_grid_the_image_makes_room(editor: Editor, by_hand: ByHand) -> None:
    """A wide picture is all seen; what is above and below it is new."""
    options = OutpaintOptions(top=4, bottom=4, fit=True)
    image = noise(0, 32, 16)
    edited = editor.outpaint([image], [1], HOW, options)
    prepared = center_crop(image, (16, 8))
    np.testing.assert_array_equal(edited.sources[0, :, 4:12], np.array(prepared).transpose(2, 0, 1))
    codes, known = np.zeros(16, dtype=np.int64), np.arange(16) // 4 % 3 > 0
    codes[known] = by_hand.encode(prepared)
    np.testing.assert_array_equal(edited.known[0], known)
    np.testing.assert_array_equal(edited.codes[0], by_hand.fill(codes, known, 1, 4, 0))
    assert edited.images.shape == (1, 3, 16, 16)


def outpainted_by_hand(
    by_hand: ByHand, image: Image.Image, label: int | None, index: int
) -> tuple[np.ndarray, np.ndarray]:
    """An image of 4 x 4 cells with 3 columns more on the left and a row below: the codes (5, 7),
    and the number of the window, from 0, that decided each; -1 for the image's."""
    codes, window_of = np.zeros((5, 7), dtype=np.int64), np.full((5, 7), -1)
    codes[:4, 3:] = by_hand.encode(image).reshape(4, 4)
    known = np.zeros((5, 7), dtype=bool)
    known[:4, 3:] = True
    for number, (row, column) in enumerate([(0, 1), (1, 3), (0, 0), (1, 1), (1, 0)]):
        here = np.s_[row : row + 4, column : column + 4]
        seed = torch_seed(Stream.WINDOW, 4, number) if number else 4
        window_of[here][~known[here]] = number
        filled = by_hand.fill(codes[here].flatten(), known[here].flatten(), label, seed, index)
        codes[here] = filled.reshape(4, 4)
        known[here] = True
    assert known.all()
    return codes.flatten(), window_of.flatten()


def test_windows_slide_over_a_larger_canvas(editor: Editor, by_hand: ByHand) -> None:
    options = OutpaintOptions(left=12, bottom=4)
    edited = editor.outpaint(IMAGES, LABELS, HOW, options)
    assert edited.grid == (5, 7)
    for row, image in enumerate(IMAGES):
        codes, window_of = outpainted_by_hand(by_hand, image, LABELS[row], row)
        np.testing.assert_array_equal(edited.codes[row], codes)
        np.testing.assert_array_equal(edited.known[row], window_of == -1)
        passes = edited.pass_of_cell[row]
        order = np.argsort(passes, kind="stable")
        assert (np.diff(window_of[order]) >= 0).all()  # window after window
        assert set(passes) == set(range(-1, edited.num_passes[row]))
    decided = np.zeros((5, 35), dtype=int)
    for part in edited.parts:
        cells = part.cells[part.plan.orders]  # (b, M) on the canvas
        decided[part.rows[:, None], cells] += 1
    np.testing.assert_array_equal(decided, ~edited.known)
    pixels = to_pixels(by_hand.tokenizer.decode(torch.from_numpy(edited.codes), (5, 7))).numpy()
    assert np.abs(pixels.astype(int) - edited.images).max() <= 1
    sources = np.full((5, 3, 20, 28), 128)
    sources[:, :, :16, 12:] = np.stack([np.array(image).transpose(2, 0, 1) for image in IMAGES])
    np.testing.assert_array_equal(edited.sources, sources)


def test_two_windows_of_one_shape_draw_other_numbers(editor: Editor) -> None:
    """With the same numbers, what is far from the image would repeat itself."""
    edited = editor.outpaint(IMAGES[:1], [0], HOW, OutpaintOptions(right=24))
    codes = edited.codes[0].reshape(4, 10)
    assert (codes[:, 4:6] != codes[:, 6:8]).any()
    orders = [part.plan.orders for part in edited.parts]
    assert len(orders) == 3
    assert (orders[1] != orders[2]).any()


@pytest.mark.parametrize("outpaint", [False, True])
def test_whoever_looks_on_sees_the_canvas_grow(editor: Editor, outpaint: bool) -> None:
    seen: dict[int, list[tuple[int, int, np.ndarray, np.ndarray]]] = {}

    def on_pass(rows: np.ndarray, number: int, num_passes: int, preview: Preview) -> None:
        assert not torch.is_inference_mode_enabled()
        assert preview.grid == ((4, 6) if outpaint else (4, 4))
        for row, codes, known in zip(rows, preview.codes, preview.known, strict=True):
            seen.setdefault(int(row), []).append((number, num_passes, codes.numpy(), known.numpy()))

    if outpaint:
        arguments = (IMAGES, LABELS, HOW, OutpaintOptions(right=8, overlap=12))
        edit = editor.outpaint
    else:
        arguments = (IMAGES, MASKS, LABELS, HOW)
        edit = editor.inpaint
    edited = edit(*arguments, on_pass=on_pass)
    same(edit(*arguments), edited, [0, 1, 2, 3, 4])
    assert sorted(seen) == [0, 1, 2, 3, 4]
    for row, steps in seen.items():
        count = edited.num_passes[row]
        assert [step[:2] for step in steps] == [(k, count) for k in range(1, count + 1)]
        for number, _, codes, known in steps:
            np.testing.assert_array_equal(known, edited.pass_of_cell[row] < number)
            np.testing.assert_array_equal(codes[known], edited.codes[row][known])
            assert not codes[~known].any()
        for before, after in itertools.pairwise(steps):
            assert (before[3] <= after[3]).all()


def test_an_edit_of_a_model_without_sense_is_not_finite(
    tiny_model: LPD, tokenizer: VQTokenizer
) -> None:
    model = LPD(tiny_model.config).eval().requires_grad_(False)
    model.load_state_dict(tiny_model.state_dict())
    model.class_emb.weight[1] = float("nan")
    editor = Editor(ImageGenerator(model, tokenizer, batch_size=4))
    for on_pass in (None, lambda *_: None):
        edited = editor.inpaint(
            IMAGES[:3],
            MASKS[:1] * 3,
            [0, 1, 2],
            EditSettings(decoding=HOW.decoding),
            on_pass=on_pass,
        )
        assert edited.finite.tolist() == [True, False, True]


def test_wrong_input_is_one_clear_line(editor: Editor) -> None:
    image, mask = IMAGES[:1], MASKS[:1]
    ten = np.zeros((16, 10), dtype=bool)
    with pytest.raises(InputError, match="mask 1: the mask is of 10 x 16 pixels, but the image of"):
        editor.inpaint(IMAGES[:2], [*mask, ten], [0, 0], HOW)
    with pytest.raises(InputError, match="mask 0: the mask is empty"):
        editor.inpaint(image, [Image.new("L", (16, 16))], [0], HOW)
    with pytest.raises(InputError, match="mask 0: the mask touches all of the 16 cells"):
        editor.inpaint(image, [Image.new("1", (16, 16), 1)], [0], HOW)
    with pytest.raises(InputError, match="2 masks were given for 1 images"):
        editor.inpaint(image, MASKS[:2], [0], HOW)
    with pytest.raises(InputError, match="2 labels were given for 1 images"):
        editor.inpaint(image, mask, [0, 1], HOW)
    with pytest.raises(InputError, match="2 image indices were given for 1 images"):
        editor.inpaint(image, mask, [0], HOW, image_indices=np.arange(2))
    with pytest.raises(InputError, match="there is no class 3"):
        editor.inpaint(image, mask, [3], HOW)
    with pytest.raises(InputError, match="there are no images to edit"):
        editor.inpaint([], [], [], HOW)
    with pytest.raises(InputError, match="image 0, of mode F: its pixels are floats"):
        editor.inpaint([Image.new("F", (16, 16))], mask, [0], HOW)
    with pytest.raises(InputError, match="image 0, of mode La: conversion from La to"):
        editor.inpaint([Image.new("La", (16, 16))], mask, [0], HOW)
    with pytest.raises(InputError, match="edit_steps 2 are more than the 1 cells"):
        editor.inpaint(image, mask, [0], EditSettings(editing=EditOptions(edit_steps=2)))
    with pytest.raises(InputError, match="above 0 and below 1, got 1"):
        editor.variations(image, [0], HOW, keep=1)
    with pytest.raises(InputError, match="image 0: none of its 16 cells are to be kept"):
        editor.variations(image, [0], HOW, keep=np.zeros(16, dtype=bool))
    keep = np.stack([np.arange(16) < 4, np.ones(16, dtype=bool)])
    with pytest.raises(InputError, match="image 1: all of its 16 cells are to be kept"):
        editor.variations(IMAGES[:2], [0, 0], HOW, keep=keep)
    with pytest.raises(InputError, match=r"are booleans of shape \(4, 4\), \(16,\) or \(1, 16\)"):
        editor.variations(image, [0], HOW, keep=np.ones(16))
    with pytest.raises(InputError, match="left must be a multiple of the 4 pixels"):
        editor.outpaint(image, [0], HOW, OutpaintOptions(left=6))
