"""The loss: right to the digit, blind to void, least where the answer is right."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unet_batch.datasets.encoding import VOID
from unet_batch.training.losses import class_weights, segmentation_loss

SHAPE = (3, 7, 9)  # samples, rows, columns


def ids_of(classes: int, seed: int = 0, *, void: float = 0.0) -> Tensor:
    random = np.random.default_rng(seed)
    ids = random.integers(0, classes, SHAPE)
    ids[random.random(SHAPE) < void] = VOID
    return torch.from_numpy(ids)


def shares_of(seed: int = 0, *, void: float = 0.0) -> Tensor:
    """Coverage, some of it 0 or 1, and how far it is known, some of it in part."""
    random = np.random.default_rng(seed)
    coverage = random.uniform(-0.5, 1.5, SHAPE).clip(0, 1)
    known = np.where(random.random(SHAPE) < void, 0, random.choice([1.0, 1.0, 0.5], SHAPE))
    return torch.from_numpy(np.stack((coverage * (known > 0), known), 1).astype(np.float32))


def logits_of(classes: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).normal(0, 2, (SHAPE[0], classes, *SHAPE[1:])).astype(np.float32)
    )


def target_of(classes: int, seed: int = 0, *, void: float = 0.0) -> Tensor:
    return shares_of(seed, void=void) if classes == 1 else ids_of(classes, seed, void=void)


def regions(dice: str) -> list[slice]:
    """The pictures that a Dice is taken over."""
    return [slice(None)] if dice == "batch" else [slice(k, k + 1) for k in range(SHAPE[0])]


def several(logits: Tensor, ids: Tensor, weights: Tensor | None, over: str = "batch") -> float:
    """Cross-entropy and Dice, class by class, in numpy."""
    z = logits.double().numpy().transpose(0, 2, 3, 1)
    log = z - np.log(np.exp(z).sum(-1, keepdims=True))
    known = ids.numpy() != VOID
    parts = [(ids.numpy()[part][known[part]], log[part][known[part]]) for part in regions(over)]
    truth, log = ids.numpy()[known], log[known]
    weight = np.ones(z.shape[-1]) if weights is None else weights.double().numpy()
    entropy = -(weight[truth] * log[np.arange(len(truth)), truth]).sum() / weight[truth].sum()
    dice = []
    for truth, log in parts:
        for id in np.unique(truth):
            p, t = np.exp(log[:, id]), truth == id
            dice.append((2 * p[t].sum() + 1) / (p.sum() + t.sum() + 1))
    return float(entropy + 1 - np.mean(dice))


def one(logits: Tensor, target: Tensor, over: str = "batch") -> float:
    z, coverage, known = (values.double().numpy() for values in (logits[:, 0], target[:, 0], target[:, 1]))
    p = 1 / (1 + np.exp(-z))
    entropy = -(known * (coverage * np.log(p) + (1 - coverage) * np.log(1 - p))).sum() / known.sum()
    overlap, total = known * np.minimum(p, coverage), known * (p + coverage)
    return float(
        entropy
        + 1
        - np.mean([(2 * overlap[part].sum() + 1) / (total[part].sum() + 1) for part in regions(over)])
    )


class TestFigures:
    @pytest.mark.parametrize("dice", ["batch", "picture"])
    @pytest.mark.parametrize("void", [0.0, 0.4])
    @pytest.mark.parametrize("weights", [None, (1.0, 1.0, 1.0, 1.0), (0.3, 5.0, 1.0, 0.0)])
    @pytest.mark.parametrize("classes", [2, 4])
    def test_of_several_classes(
        self, classes: int, weights: tuple[float, ...] | None, void: float, dice: Literal["batch", "picture"]
    ) -> None:
        logits, ids = logits_of(classes), ids_of(classes, void=void)
        # A picture that lacks a class, where there are more than two
        ids[0][(ids[0] > 1) & (ids[0] != VOID)] = 1
        weight = None if weights is None else torch.tensor(weights[:classes])
        assert segmentation_loss(logits, ids, weight, dice).item() == pytest.approx(
            several(logits, ids, weight, dice), rel=1e-5
        )

    @pytest.mark.parametrize("dice", ["batch", "picture"])
    @pytest.mark.parametrize("void", [0.0, 0.4])
    def test_of_one_class(self, void: float, dice: Literal["batch", "picture"]) -> None:
        logits, target = logits_of(1), shares_of(void=void)
        assert segmentation_loss(logits, target, None, dice).item() == pytest.approx(
            one(logits, target, dice), rel=1e-5
        )

    def test_of_the_picture_one_small_region_counts_as_much_as_a_large_one(self) -> None:
        target = torch.zeros(2, 2, 20, 20)
        target[:, 1] = 1
        target[0, 0, 2:4, 2:4] = 1
        target[1, 0, 2:18, 2:18] = 1
        found = 20.0 * (2 * target[:, :1] - 1)
        for missed, least in (
            ((0, "batch"), 0.0),
            ((1, "batch"), 0.9),
            ((0, "picture"), 0.39),
            ((1, "picture"), 0.49),
        ):
            number, dice = missed
            logits = found.clone()
            logits[number] = -20.0
            entropy = 20.0 * target[number, 0].sum().item() / 800
            assert least < segmentation_loss(logits, target, None, dice).item() - entropy < least + 0.1

    @pytest.mark.parametrize(("dice", "expected"), [("batch", 0.527493417), ("picture", 0.530141056)])
    def test_of_masks_of_two_values_is_what_it_was(
        self, dice: Literal["batch", "picture"], expected: float
    ) -> None:
        """A training that goes on in another release must see the same loss."""
        rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(12.0), indexing="ij")
        logits = torch.stack([(columns - 5) * 0.7 - (rows - 3) * 0.4, 4 - rows - columns * 0.25])[:, None]
        known = torch.ones(2, 8, 12)
        known[0, :2] = 0
        covered = torch.stack([columns >= 6, rows < 2]) * known
        found = segmentation_loss(logits, torch.stack((covered, known), 1), None, dice)
        assert found.item() == pytest.approx(expected, rel=1e-6)

    @pytest.mark.parametrize("classes", [1, 2, 5])
    def test_is_near_nothing_where_all_is_right_and_large_where_all_is_wrong(self, classes: int) -> None:
        ids = ids_of(max(2, classes))
        if classes == 1:
            logits, target = (
                40.0 * (ids[:, None] * 2 - 1),
                torch.stack((ids, torch.ones_like(ids)), 1).float(),
            )
        else:
            logits, target = 40.0 * (ids[:, None] == torch.arange(classes).view(1, -1, 1, 1)), ids
        assert 0 <= segmentation_loss(logits, target).item() < 1e-5
        assert segmentation_loss(-logits, target).item() > 10

    def test_what_no_pixel_shows_counts_in_no_dice(self) -> None:
        logits, ids = logits_of(2), ids_of(2)
        more = torch.cat((logits, torch.full((SHAPE[0], 3, *SHAPE[1:]), -1e4)), 1)
        assert segmentation_loss(more, ids).item() == pytest.approx(
            segmentation_loss(logits, ids).item(), rel=1e-6
        )

    def test_weights_count_by_their_ratio_and_only_in_the_cross_entropy(self) -> None:
        logits, ids = logits_of(3), ids_of(3)
        weights = torch.tensor([1.0, 2.0, 4.0])
        assert segmentation_loss(logits, ids, 3 * weights).item() == pytest.approx(
            segmentation_loss(logits, ids, weights).item(), rel=1e-6
        )
        third_is_missed = 5.0 * (ids[:, None] % 2 == torch.arange(3).view(1, -1, 1, 1))
        lighter, equal, heavier = (
            segmentation_loss(third_is_missed, ids, torch.tensor([1.0, 1.0, w])).item() for w in (0.5, 1, 2)
        )
        assert equal == pytest.approx(segmentation_loss(third_is_missed, ids).item(), rel=1e-6)
        assert lighter < equal - 0.1
        assert heavier > equal + 0.1


class TestVoid:
    @pytest.mark.parametrize("classes", [1, 2, 4])
    def test_never_counts(self, classes: int) -> None:
        target = target_of(classes, void=0.3)
        void = target[:, 1] == 0 if classes == 1 else target == VOID
        assert void.any()
        first = logits_of(classes).requires_grad_()
        second = torch.where(void[:, None], logits_of(classes, 1) * 100, first).detach().requires_grad_()
        weights = None if classes == 1 else torch.linspace(0.5, 2, classes)
        losses = [segmentation_loss(logits, target, weights) for logits in (first, second)]
        gradients = [
            torch.autograd.grad(loss, logits)[0] for loss, logits in zip(losses, (first, second), strict=True)
        ]
        assert losses[0].item() == losses[1].item()
        assert torch.equal(*gradients)
        assert (gradients[0].movedim(1, -1)[void] == 0).all()
        assert (gradients[0].movedim(1, -1)[~void] != 0).any(-1).all()

    @pytest.mark.parametrize("dice", ["batch", "picture"])
    @pytest.mark.parametrize("weights", [False, True])
    @pytest.mark.parametrize("classes", [1, 2, 4])
    def test_alone_gives_no_gradient(
        self, classes: int, weights: bool, dice: Literal["batch", "picture"]
    ) -> None:
        logits = logits_of(classes).requires_grad_()
        target = target_of(classes, void=2)
        loss = segmentation_loss(
            logits, target, torch.ones(classes) if weights and classes > 1 else None, dice
        )
        loss.backward()
        assert torch.isfinite(loss)
        assert logits.grad is not None
        assert (logits.grad == 0).all()


class TestLeast:
    @pytest.mark.parametrize("coverage", [0.1, 0.35, 0.65, 0.9])
    def test_is_at_the_share_that_the_class_covers(self, coverage: float) -> None:
        # A small region inside and a rim of pixels that it covers in part: soft Dice of the product would
        # sharpen the rim.
        target = torch.zeros(1, 2, 12, 12)
        target[:, 1] = 1
        target[0, 0, 3:8, 3:8] = coverage
        target[0, 0, 4:7, 4:7] = 1
        rim = (target[0, 0] > 0) & (target[0, 0] < 1)
        shares = torch.arange(0.01, 1, 0.01)
        losses = []
        for share in shares:
            logits = 30 * (target[:, :1] * 2 - 1)
            logits[0, 0, rim] = torch.logit(share)
            losses.append(segmentation_loss(logits, target).item())
        assert shares[int(np.argmin(losses))].item() == pytest.approx(coverage, abs=0.011)

    @pytest.mark.parametrize("dice", ["batch", "picture"])
    @pytest.mark.parametrize("coverage", [0, 0.02, 0.25, 0.5, 0.75, 0.98, 1])
    def test_of_an_even_region_is_at_its_probability(
        self, coverage: float, dice: Literal["batch", "picture"]
    ) -> None:
        target = torch.ones(2, 2, 10, 10)
        target[:, 0] = coverage
        shares = torch.linspace(0.001, 0.999, 999)
        losses = [
            segmentation_loss(torch.full((2, 1, 10, 10), share), target, None, dice).item()
            for share in torch.logit(shares).tolist()
        ]
        assert shares[int(np.argmin(losses))].item() == pytest.approx(coverage, abs=0.0015)

    @settings(deadline=None, max_examples=50)
    @given(seed=st.integers(0, 10**6), far=st.sampled_from([0.05, 0.5, 5]))
    def test_is_at_the_shares_of_any_picture(self, seed, far):
        target = shares_of(seed, void=0.2)
        exact = torch.logit(target[:, :1], 1e-6)
        other = exact + far * logits_of(1, seed)
        for dice in ("batch", "picture"):
            least = segmentation_loss(exact, target, None, dice)
            assert least < segmentation_loss(other, target, None, dice)

    @settings(deadline=None, max_examples=20)
    @given(st.integers(0, 10**6), st.sampled_from([1, 2, 4]))
    def test_steps_down_the_gradient_make_it_smaller(self, seed, classes):
        logits, target = logits_of(classes, seed).requires_grad_(), target_of(classes, seed, void=0.2)
        loss = segmentation_loss(logits, target)
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            assert segmentation_loss(logits - gradient, target) < loss

    @pytest.mark.parametrize("classes", [1, 3])
    @pytest.mark.parametrize("size", [1e4, 1e6])
    def test_logits_of_any_size_have_finite_gradients(self, classes: int, size: float) -> None:
        logits = (logits_of(classes).sign() * size).requires_grad_()
        loss = segmentation_loss(logits, target_of(classes, void=0.2))
        loss.backward()
        assert torch.isfinite(loss)
        assert logits.grad is not None
        assert torch.isfinite(logits.grad).all()

    def test_a_batch_without_the_class_still_teaches(self) -> None:
        logits = torch.zeros(1, 1, 4, 4, requires_grad=True)
        target = torch.stack((torch.zeros(1, 4, 4), torch.ones(1, 4, 4)), 1)
        segmentation_loss(logits, target).backward()
        assert logits.grad is not None
        assert (logits.grad > 0).all()


class TestClassWeights:
    def test_go_by_the_square_root(self) -> None:
        weights = class_weights([0.64, 0.32, 0.04])
        assert (weights[2] / weights[0]).item() == pytest.approx(4)

    @given(st.lists(st.floats(0.01, 1), min_size=2, max_size=20))
    def test_are_one_on_average(self, parts):
        shares = [part / sum(parts) for part in parts]
        weights = class_weights(shares)
        assert weights.dtype == torch.float32
        if weights.max() < 10:
            assert sum(w * s for w, s in zip(weights.tolist(), shares, strict=True)) == pytest.approx(
                1, abs=1e-4
            )
        order = sorted(range(len(shares)), key=shares.__getitem__)
        assert all(weights[a] >= weights[b] for a, b in pairwise(order))

    def test_have_a_limit(self) -> None:
        assert class_weights([1 - 1e-6, 1e-6])[1] == 10

    def test_of_what_never_occurs_are_nothing(self) -> None:
        weights = class_weights([0.5, 0.0, 0.5])
        assert weights.tolist() == pytest.approx([1, 0, 1])
        loss = segmentation_loss(logits_of(3), torch.where(ids_of(3) == 1, VOID, ids_of(3)), weights)
        assert torch.isfinite(loss)
