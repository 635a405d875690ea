"""Scores: Inception Scores in closed form, probabilities of a classifier, masks, top-k, shape bias by hand."""

import numpy
import pytest
import torch

import experiment
from cgn import scores
from experiment import UserError

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


# --- the Inception Score -----------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_predictions_that_are_all_alike_score_1(classes):
    found = scores.inception_score(torch.full((12, classes), 1 / classes), 3)
    assert found == pytest.approx((1, 0, 4), abs=1e-9)
    alike = torch.rand(classes, generator=experiment.generator(0, "alike")).softmax(0).expand(12, classes)
    assert scores.inception_score(alike, 1) == pytest.approx((1, 0, 12), abs=1e-6)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_certain_predictions_spread_over_k_classes_score_k(classes):
    assert scores.inception_score(torch.eye(classes).repeat(6, 1), 3) == pytest.approx((classes, 0, 2 * classes))


def test_mean_and_deviation_are_over_splits_and_the_remainder_is_left_out():
    two, one = torch.eye(3)[[0, 1]], torch.eye(3)[[2, 2]]
    assert scores.inception_score(torch.cat([two, one]), 2) == pytest.approx((1.5, 0.5, 2))  # splits of 2 and of 1
    assert scores.inception_score(torch.cat([two, one, two[:1]]), 2) == pytest.approx((1.5, 0.5, 2))
    assert scores.inception_score(torch.cat([two, one]), 1).mean == pytest.approx(2**1.5)  # entropy 3/2 ln 2
    assert scores.inception_score(torch.eye(4).repeat_interleave(5, 0), 4).mean == pytest.approx(1)  # sorted by class


def test_it_is_the_entropy_of_the_mean_less_the_mean_entropy():
    p = numpy.random.default_rng(0).dirichlet([0.3] * 7, 40)
    wanted = []
    for part in (p[:13], p[13:26], p[26:39]):
        entropy = lambda q: -(q * numpy.log(q)).sum(-1)
        wanted.append(numpy.exp(entropy(part.mean(0)) - entropy(part).mean()))
    found = scores.inception_score(torch.from_numpy(p), 3)
    assert found == pytest.approx((numpy.mean(wanted), numpy.std(wanted), 13), rel=1e-9)


@pytest.mark.parametrize(("rows", "splits", "match"), [
    (torch.full((4, 3), 0.3), 1, "no probabilities"),
    (torch.tensor([[1.5, -0.5]]), 1, "no probabilities"),
    (torch.tensor([[float("nan"), 1.0]]), 1, "no finite numbers"),
    (torch.full((4, 2), 0.5), 5, "over 5 splits needs .* there are 4 images"),
    (torch.full((4, 2), 0.5), 0, "over 0 splits"),
    (torch.full((0, 2), 0.5), 1, r"not of shape \(0, 2\)"),
    (torch.full((4,), 0.25), 1, r"not of shape \(4,\)"),
])  # fmt: skip
def test_scores_that_cannot_be_had_are_refused(rows, splits, match):
    with pytest.raises(UserError, match=match):
        scores.inception_score(rows, splits)


# --- probabilities -----------------------------------------------------------------------------------------


class Seen(torch.nn.Module):
    """A classifier whose logits are the mean colours; it keeps the shapes it was given, and its mode."""

    def forward(self, x):
        self.shapes = [*getattr(self, "shapes", []), tuple(x.shape)]
        self.was_training = self.training
        return x.mean((2, 3))


def test_the_classifier_is_fed_imagenet_statistics_or_the_images_themselves():
    colours = torch.tensor([[-1.0, 0.0, 1.0], [0.5, 0.5, -0.5]])
    images = colours[:, :, None, None].expand(2, 3, 8, 8)
    found = scores.class_probabilities(Seen(), images)
    torch.testing.assert_close(found, (((colours + 1) / 2 - MEAN) / DEVIATION).softmax(1))
    assert found.dtype == torch.float32
    torch.testing.assert_close(scores.class_probabilities(Seen(), images, normalise=False), colours.softmax(1))


def test_images_are_resized_in_batches_and_judged_in_evaluation_mode():
    classifier, images = Seen(), torch.rand(5, 3, 8, 12)
    assert scores.class_probabilities(classifier.train(), images, side=6, batch=2).shape == (5, 3)
    assert classifier.shapes == [(2, 3, 6, 6), (2, 3, 6, 6), (1, 3, 6, 6)]
    assert not classifier.was_training
    one, all_ = (scores.class_probabilities(Seen(), images, batch=batch) for batch in (1, 5))
    torch.testing.assert_close(one, all_)


def test_images_that_get_smaller_are_smoothed():
    """Of stripes one pixel wide in every four, some of each is left, where plain bilinear sampling would miss them."""

    class Middle(torch.nn.Module):
        def forward(self, x):
            return torch.log(torch.stack([x[:, 0, 4, 4] + 1, 1 - x[:, 0, 4, 4]], 1) / 2)

    stripes = torch.tensor([1.0, -1.0, -1.0, -1.0]).repeat(8).expand(1, 3, 32, 32)
    found = scores.class_probabilities(Middle(), stripes, side=8, normalise=False)
    assert found[0, 0].item() == pytest.approx(0.25, abs=0.1)


# --- masks ---------------------------------------------------------------------------------------------------


def test_masks_are_averaged_each_and_together():
    masks = torch.stack([torch.zeros(1, 4, 4), torch.ones(1, 4, 4), torch.full((1, 4, 4), 0.25)])
    mean, each = scores.mean_mask(masks)
    assert mean == pytest.approx(1.25 / 3)
    assert each.tolist() == [0, 1, 0.25]
    assert each.dtype == torch.float64
    assert scores.mean_mask(masks > 0.5)[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize("bad", [1.01, -0.01, float("nan")])
def test_what_is_no_mask_is_refused(bad):
    masks = torch.full((2, 1, 4, 4), 0.5)
    masks[1, 0, 2, 2] = bad
    with pytest.raises(UserError, match=r"no numbers in \[0, 1\]"):
        scores.mean_mask(masks)
    with pytest.raises(UserError, match="no masks"):
        scores.mean_mask(masks[:0])


# --- classifiers ---------------------------------------------------------------------------------------------


def test_top_k_by_hand():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 4)
    labels = torch.arange(4)
    assert [scores.top_k(logits, labels, k) for k in (1, 2, 3, 4)] == [0.25, 0.5, 0.75, 1]
    assert scores.top_k(logits, torch.zeros(4, dtype=torch.int64), 1) == 1


@pytest.mark.parametrize(("labels", "k", "match"), [
    ([0, 1], 0, "0 highest of 3"), ([0, 1], 4, "4 highest of 3"), ([0, 3], 1, "run from 0 to 3, and there are 3"),
    ([-1, 0], 1, "run from -1"), ([0, 1, 2], 1, "2 images need as many labels"),
])  # fmt: skip
def test_top_k_of_what_is_not_there_is_refused(labels, k, match):
    with pytest.raises(UserError, match=match):
        scores.top_k(torch.rand(2, 3), torch.tensor(labels), k)


def test_logits_that_are_no_numbers_are_refused():
    with pytest.raises(UserError, match="logits hold values that are no finite numbers"):
        scores.top_k(torch.tensor([[1.0, float("inf")]]), torch.tensor([0]), 1)


def test_a_category_has_the_mean_of_its_classes():
    """40 classes in 16 categories of 1 to 3, one by one as the authors' code does; the last 9 are in none."""
    sizes, members, start = [1, 2, 3, 2] * 4, [], 0
    for size in sizes:
        members.append(list(range(start, start + size)))
        start += size
    p = torch.rand(5, 41, generator=experiment.generator(0, "p")).mul(3).softmax(1)
    found = scores.sixteen_classes(p, members)
    assert found.shape == (5, 16)
    assert found.dtype == torch.float64
    for row, values in zip(p.double().tolist(), found.tolist(), strict=True):
        assert values == pytest.approx([sum(row[i] for i in some) / len(some) for some in members])


def test_many_classes_are_no_advantage():
    p = torch.tensor([[0.4, 0.2, 0.2, 0.2]])
    assert scores.sixteen_classes(p, [[0], [1, 2, 3]]).argmax(1).item() == 0


@pytest.mark.parametrize(("members", "match"), [
    ([[0], []], "category 1 must have classes"), ([[0, 0]], "each of them once"), ([[1], [4]], "names class 4"),
    ([[-1, 0]], "category 0 names class -1, and there are 4"),
])  # fmt: skip
def test_categories_that_cannot_be_are_refused(members, match):
    with pytest.raises(UserError, match=match):
        scores.sixteen_classes(torch.full((2, 4), 0.25), members)


def test_shape_bias_by_hand():
    """Decisions 0 1 2 3 3 5: shape, shape, texture, neither, shape (and also texture: no conflict), shape."""
    p = torch.eye(16)[[0, 1, 2, 3, 3, 5]] * 0.5
    shape, texture = torch.tensor([0, 1, 7, 8, 3, 5]), torch.tensor([9, 2, 2, 9, 3, 0])
    assert scores.shape_bias(p, shape, texture) == (3 / 4, 3, 1, 5)
    assert scores.shape_bias(p, texture, shape) == (1 / 4, 1, 3, 5)


def test_a_bias_without_decisions_is_none():
    p = torch.eye(4)[[0, 1]]
    assert scores.shape_bias(p, torch.tensor([1, 2]), torch.tensor([2, 3])) == (None, 0, 0, 2)
    assert scores.shape_bias(p, torch.tensor([0, 1]), torch.tensor([0, 1])) == (None, 0, 0, 0)
    with pytest.raises(UserError, match="there are 4 classes"):
        scores.shape_bias(p, torch.tensor([0, 4]), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="as many labels"):
        scores.shape_bias(p, torch.tensor([0, 1]), torch.tensor([0]))
