"""Every metric of robust_training against an answer worked out by hand, at n = 0, and on what is not finite."""

import math

import numpy
import pytest
import torch
from sklearn.calibration import calibration_curve

import experiment
from experiment import UserError
from robust_training import measure

NAN, INF = math.nan, math.inf


def logits_of(*rows):
    """Logits whose softmax is these probabilities."""
    return torch.tensor(rows, dtype=torch.float64).log()


# --- accuracy -----------------------------------------------------------------------------------


def test_accuracies_of_groups():
    right = torch.tensor([1, 1, 1, 0, 1, 0, 0, 1]).bool()
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 3, -1])  # group 2 has no sample, the last sample no group
    found = measure.accuracies(right, groups)
    assert found["accuracy"] == 5 / 8
    assert found["per_group"] == [3 / 4, 1 / 2, None, 0.0]
    assert found["n_per_group"] == [4, 2, 0, 1]
    assert found["worst_group"] == 0
    assert found["mean_of_groups"] == pytest.approx((3 / 4 + 1 / 2 + 0) / 3)
    assert found["absent"] == 1
    assert measure.accuracies(right, groups, count=6)["absent"] == 3
    with pytest.raises(UserError, match="a sample of group 3, but only 3 groups"):
        measure.accuracies(right, groups, count=3)


def test_accuracies_of_nothing():
    found = measure.accuracies(torch.zeros(0).bool(), torch.zeros(0).long(), count=2)
    assert (found["accuracy"], found["worst_group"], found["mean_of_groups"], found["absent"]) == (None, None, None, 2)
    with pytest.raises(UserError, match="right must be booleans"):
        measure.accuracies(torch.tensor([0.5]), torch.tensor([0]))
    with pytest.raises(UserError, match="groups must be 2 whole numbers"):
        measure.accuracies(torch.tensor([True, False]), torch.tensor([0]))


def test_weighted_mean_leaves_out_absent_groups():
    assert measure.weighted_mean([1.0, 0.5, 0.0], [0.6, 0.2, 0.2]) == pytest.approx(0.7)
    assert measure.weighted_mean([1.0, None, 0.5], [0.2, 0.7, 0.1]) == pytest.approx((0.2 + 0.05) / 0.3)
    assert measure.weighted_mean([None, None], [0.5, 0.5]) is None
    assert measure.weighted_mean([], []) is None
    assert measure.weighted_mean([1.0, None], [0.0, 1.0]) is None
    for weights in ([0.5], [0.5, -0.5]):
        with pytest.raises(UserError, match="2 groups need as many weights"):
            measure.weighted_mean([1.0, 0.5], weights)
    with pytest.raises(UserError, match="weights are not finite"):
        measure.weighted_mean([1.0, 0.5], [NAN, 1.0])
    with pytest.raises(UserError, match="not all finite"):
        measure.weighted_mean([NAN, 0.5], [1.0, 1.0])


def test_background_gap():
    assert measure.bg_gap(0.875, 0.75) == 0.125
    assert measure.bg_gap(0.5, 0.75) == -0.25
    assert measure.bg_gap(None, 0.75) is None
    for bad in (86.2, NAN):
        with pytest.raises(UserError, match="accuracies from 0 to 1"):
            measure.bg_gap(bad, 0.5)


# --- loss and ranking ---------------------------------------------------------------------------


def test_cross_entropy():
    logits = logits_of([0.25, 0.75], [0.5, 0.5])
    assert measure.cross_entropy(logits, torch.tensor([0, 1])) == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert measure.cross_entropy(torch.tensor([[0.0, 1000.0]]), torch.tensor([0])) == pytest.approx(1000)
    assert measure.cross_entropy(torch.zeros(0, 2), torch.zeros(0).long()) is None


@pytest.mark.parametrize("metric", [measure.cross_entropy, measure.auc, measure.aupr])
def test_logits_and_labels_must_be_sound(metric):
    with pytest.raises(UserError, match="1 of 2 logits are not finite"):
        metric(torch.tensor([[0.0, INF]]), torch.tensor([0]))
    with pytest.raises(UserError, match="labels must lie in 0 to 1, and are 2 to 2"):
        metric(torch.zeros(1, 2), torch.tensor([2]))
    with pytest.raises(UserError, match="labels must be 1 whole numbers"):
        metric(torch.zeros(1, 2), torch.tensor([0, 1]))
    with pytest.raises(UserError, match="logits must have 2 dimensions"):
        metric(torch.zeros(2), torch.tensor([0, 1]))


def test_two_classes_are_ranked_by_class_1():
    # In falling order of p(1): 1, 0, 1, 0. Of 4 pairs of a 1 and a 0, 3 are in order; precision at the ones: 1, 2/3.
    logits, labels = logits_of([0.1, 0.9], [0.3, 0.7], [0.4, 0.6], [0.8, 0.2]), torch.tensor([1, 0, 1, 0])
    assert measure.auc(logits, labels) == (pytest.approx(3 / 4), 0)
    assert measure.aupr(logits, labels) == (pytest.approx((1 + 2 / 3) / 2), 0)
    # Class 0 as the positive one would have the same AUC but another AUPR: 1 (0.8), then 0.4 a 1, then 2/3.
    unequal = measure.aupr(logits_of([0.1, 0.9], [0.3, 0.7], [0.4, 0.6]), torch.tensor([0, 1, 1]))
    assert unequal == (pytest.approx((1 / 2 + 2 / 3) / 2), 0)


def test_ties_count_half_and_a_sure_classifier_still_ranks():
    assert measure.auc(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])).value == 0.5
    assert measure.aupr(torch.zeros(4, 2), torch.tensor([0, 1, 1, 1])).value == 0.75
    sure = torch.tensor([[0.0, 60.0], [0.0, 50.0], [0.0, 70.0]])  # all three probabilities round to 1
    assert measure.auc(sure, torch.tensor([1, 0, 1])).value == 1


def test_classes_are_averaged_and_absent_ones_left_out():
    logits = logits_of([0.5, 0.3, 0.1, 0.1], [0.2, 0.5, 0.2, 0.1], [0.6, 0.2, 0.1, 0.1])
    labels = torch.tensor([0, 1, 1])
    # Class 0: its sample is second of three, AUC and AUPR 1/2. Class 1: first and third, AUC 1/2, AUPR (1 + 2/3) / 2.
    assert measure.auc(logits, labels) == (pytest.approx(1 / 2), 2)
    assert measure.aupr(logits, labels) == (pytest.approx((1 / 2 + 5 / 6) / 2), 2)


@pytest.mark.parametrize("metric", [measure.auc, measure.aupr])
def test_ranking_without_both_sides_is_undefined(metric):
    assert metric(torch.zeros(3, 2), torch.tensor([1, 1, 1])) == (None, 1)
    assert metric(torch.zeros(3, 4), torch.tensor([1, 1, 1])) == (None, 4)
    assert metric(torch.zeros(0, 4), torch.zeros(0).long()) == (None, 4)
    with pytest.raises(UserError, match="at least 2 classes"):
        metric(torch.zeros(1, 1), torch.tensor([0]))


# --- calibration --------------------------------------------------------------------------------


def test_calibration_by_hand():
    probabilities = torch.tensor([[0.95, 0.05, 0.0], [0.95, 0.0, 0.05], [0.95, 0.05, 0.0], [0.15, 0.23, 0.62]])
    found = measure.calibration(probabilities.double(), torch.tensor([0, 0, 1, 2]))
    # Top 1: three of confidence 0.95, two right; one of 0.62, right.
    assert found.ece == pytest.approx((3 * abs(0.95 - 2 / 3) + abs(0.62 - 1)) / 4)
    assert found.top.n.tolist() == [0, 0, 0, 0, 0, 0, 1, 0, 0, 3]
    # All: six of mean 0.025, one true; 0.15 and 0.23, false; 0.62, true; three of 0.95, two true.
    gaps = [abs(0.15 / 6 - 1 / 6), 0.15, 0.23, 0.38, abs(0.95 - 2 / 3)]
    assert found.published == pytest.approx(sum(gaps) / 5)
    assert found.one_vs_rest.n.tolist() == [6, 1, 1, 0, 0, 0, 1, 0, 0, 3]
    assert found.one_vs_rest.predicted[[0, 9]].tolist() == pytest.approx([0.025, 0.95])
    assert found.one_vs_rest.positive[[0, 9]].tolist() == pytest.approx([1 / 6, 2 / 3])
    assert found.one_vs_rest.predicted[3].isnan()
    assert found.top.edges.tolist() == pytest.approx([k / 10 for k in range(11)])


def test_bins_weigh_by_their_samples_in_one_definition_and_not_in_the_other():
    probabilities = torch.tensor([[0.1, 0.9]] * 9 + [[0.7, 0.3]], dtype=torch.float64)
    found = measure.calibration(probabilities, torch.tensor([1] * 9 + [0]))
    assert found.ece == pytest.approx(0.9 * 0.1 + 0.1 * 0.3)
    assert found.published == pytest.approx((0.1 + 0.3) / 2)  # two classes: of class 1 alone
    assert found.one_vs_rest.n.sum() == 10


def test_the_published_definition_is_that_of_sklearns_curve():
    stream = experiment.generator(0, "calibration")
    logits = torch.randn(200, 5, generator=stream, dtype=torch.float64) * 2
    labels = torch.randint(5, (200,), generator=stream)
    probabilities, hot = logits.softmax(1), torch.nn.functional.one_hot(labels, 5)
    positive, predicted = calibration_curve(hot.flatten().numpy(), probabilities.flatten().numpy(), n_bins=7)
    found = measure.calibration(probabilities, labels, bins=7)
    assert found.published == pytest.approx(numpy.abs(positive - predicted).mean())
    full = found.one_vs_rest.n > 0
    assert numpy.allclose(found.one_vs_rest.positive[full], positive)


def test_the_edges_belong_to_the_lower_bin():
    bins = measure.calibration(torch.tensor([[0.0, 1.0], [0.5, 0.5]]), torch.tensor([1, 1]), bins=2).one_vs_rest
    assert bins.n.tolist() == [1, 1]
    zero = measure.calibration(torch.tensor([[1.0, 0.0]]), torch.tensor([0]), bins=2).one_vs_rest
    assert zero.n.tolist() == [1, 0]


def test_calibration_of_nothing_and_of_no_distribution():
    empty = measure.calibration(torch.zeros(0, 3), torch.zeros(0).long())
    assert (empty.ece, empty.published, empty.top.n.sum().item()) == (None, None, 0)
    for bad in ([[0.5, 0.6]], [[1.5, -0.5]]):
        with pytest.raises(UserError, match="each row must sum to 1"):
            measure.calibration(torch.tensor(bad), torch.tensor([0]))
    with pytest.raises(UserError, match="2 of 2 probabilities are not finite"):
        measure.calibration(torch.tensor([[NAN, NAN]]), torch.tensor([0]))


# --- detection ----------------------------------------------------------------------------------


def test_anomaly_scores():
    assert measure.anomaly_score(logits_of([0.7, 0.2, 0.1]), 3).tolist() == pytest.approx([0.3])
    assert measure.anomaly_score(logits_of([0.1, 0.2, 0.3, 0.4]), 2).tolist() == pytest.approx([0.7])
    assert measure.anomaly_score(logits_of([0.1, 0.2, 0.3, 0.4]), 4).tolist() == pytest.approx([0.6])
    assert measure.anomaly_score(logits_of([0.7, 0.2, 0.1]) + 5, 3).tolist() == pytest.approx([0.3])
    assert measure.anomaly_score(torch.tensor([[50.0, 0.0]]), 2).item() == pytest.approx(math.exp(-50), rel=1e-6)
    assert measure.anomaly_score(torch.zeros(0, 4), 2).shape == (0,)
    with pytest.raises(UserError, match="2 classes must have 2 or 4 columns, at least 2, not 3"):
        measure.anomaly_score(torch.zeros(1, 3), 2)
    with pytest.raises(UserError, match="not finite"):
        measure.anomaly_score(torch.tensor([[NAN, 0.0]]), 2)


def test_detection_by_hand():
    outside = torch.arange(1, 21).float()  # 95 % of 20 is 19: the threshold is 2
    found = measure.detection(torch.tensor([0.0, 1.5, 2.0, 30.0]), outside)
    assert found["fpr95"] == 2 / 4  # 2.0, as a tie counts, and 30
    # Of 20 x 4 pairs in order: 20 with 0, 19 with 1.5, 18.5 with 2 (a tie is half), none with 30.
    assert found["auc"] == pytest.approx((20 + 19 + 18.5) / 80)
    assert (found["n_in"], found["n_out"]) == (4, 20)
    assert measure.detection(torch.tensor([0.0, 1.5, 2.0, 30.0]), outside[:19])["fpr95"] == 3 / 4  # 18.05 needs all 19


def test_detection_at_its_limits():
    perfect = measure.detection(torch.tensor([0.1, 0.2]), torch.tensor([0.3]))
    assert (perfect["fpr95"], perfect["auc"], perfect["aupr"]) == (0, 1, 1)
    ties = measure.detection(torch.full((3,), 0.5), torch.full((1,), 0.5))
    assert (ties["fpr95"], ties["auc"], ties["aupr"]) == (1, 0.5, 0.25)  # aupr: the share of positives
    for inside, outside in ((torch.zeros(0), torch.ones(2)), (torch.ones(2), torch.zeros(0))):
        empty = measure.detection(inside, outside)
        assert (empty["fpr95"], empty["auc"], empty["aupr"]) == (None, None, None)
    with pytest.raises(UserError, match="1 of 1 anomaly_out are not finite"):
        measure.detection(torch.zeros(1), torch.tensor([NAN]))


# --- saliency -----------------------------------------------------------------------------------


def test_focus_by_hand():
    saliency = torch.tensor([[[4.0, 3.0], [2.0, 1.0]]]).repeat(3, 1, 1)
    masks = torch.tensor([[[1, 1], [0, 0]], [[1, 0], [1, 0]], [[0, 0], [0, 1]]]).bool()[:, None]
    found = measure.focus(saliency, masks)
    assert found["inside"].tolist() == pytest.approx([7 / 10, 6 / 10, 1 / 10])
    assert found["aupr"].tolist() == pytest.approx([1, (1 + 2 / 3) / 2, 1 / 4])
    assert found["iou"].tolist() == pytest.approx([1, 1 / 3, 0])
    assert found["area"].tolist() == [0.5, 0.5, 0.25]
    assert found["undefined"] == 0


def test_focus_does_not_depend_on_the_scale():
    saliency = torch.rand(2, 5, 5, generator=experiment.generator(0, "saliency"), dtype=torch.float64)
    masks = torch.zeros(2, 1, 5, 5).bool()
    masks[:, :, 1:4, 2:] = True
    plain = measure.focus(saliency, masks)
    for scale in (1e-300, 1e308):
        scaled = measure.focus(saliency * scale, masks)
        for name in ("inside", "aupr", "iou"):
            assert torch.allclose(scaled[name], plain[name], rtol=1e-9), name


def test_pixels_that_tie_share_the_last_places():
    saliency = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    masks = torch.tensor([[[1, 1], [0, 0]]]).bool()[:, None]
    # One place is left for three pixels of 0, one of them in the mask: 1 + 1/3 pixels in common.
    assert measure.focus(saliency, masks)["iou"].item() == pytest.approx((4 / 3) / (4 - 4 / 3))
    mirrored = measure.focus(saliency.flip(1), masks.flip(2))
    assert mirrored["iou"].item() == pytest.approx((4 / 3) / (4 - 4 / 3))
    assert measure.focus(torch.ones(1, 2, 2), masks)["aupr"].item() == 0.5  # says nothing: the mask's share


def test_what_cannot_be_in_focus_is_nan_and_counted():
    saliency = torch.ones(4, 2, 2)
    saliency[1] = 0
    masks = torch.zeros(4, 1, 2, 2).bool()
    masks[1, 0, 0, 0] = masks[3, 0, 0, 0] = True
    masks[2] = True
    found = measure.focus(saliency, masks)  # an empty mask, no saliency, a mask that covers all, and a good one
    for name in ("inside", "aupr", "iou"):
        assert found[name].isnan().tolist() == [True, True, True, False]
    assert found["undefined"] == 3
    assert measure.mean_defined(found["inside"]) == (0.25, 1)
    assert measure.mean_defined(found["inside"][:3]) == (None, 0)
    with pytest.raises(UserError, match="1 of 1 values are not finite"):
        measure.mean_defined(torch.tensor([INF, NAN]))


def test_focus_of_nothing_and_of_what_does_not_fit():
    empty = measure.focus(torch.zeros(0, 2, 2), torch.zeros(0, 1, 2, 2).bool())
    assert empty["inside"].shape == empty["area"].shape == (0,)
    assert empty["undefined"] == 0
    masks = torch.ones(1, 1, 2, 2).bool()
    with pytest.raises(UserError, match="at least 0"):
        measure.focus(-torch.ones(1, 2, 2), masks)
    with pytest.raises(UserError, match="4 of 4 saliency values are not finite"):
        measure.focus(torch.full((1, 2, 2), NAN), masks)
    with pytest.raises(UserError, match="one channel"):
        measure.focus(torch.ones(1, 2, 2), masks[:, 0])
    with pytest.raises(UserError, match=r"boolean masks .* not torch.float32"):
        measure.focus(torch.ones(1, 2, 2), masks.float())


# --- all of a split -----------------------------------------------------------------------------


def test_summary_by_hand():
    logits = logits_of([0.1, 0.9], [0.3, 0.7], [0.4, 0.6], [0.8, 0.2])
    labels, groups = torch.tensor([1, 0, 1, 0]), torch.tensor([0, 1, 0, -1])
    found = measure.summary(logits, labels, groups, [0.9, 0.1, 0.0], classes=2)
    assert list(found) == ["accuracy", "cross_entropy", "worst_group", "mean_of_groups", "weighted_mean",
                           "absent_groups", "auc", "aupr", "ece", "published_ece", "absent_classes"]  # fmt: skip
    assert found["accuracy"] == (0.75, 4)
    assert found["cross_entropy"] == (pytest.approx(-math.log(0.9 * 0.3 * 0.6 * 0.8) / 4), 4)
    assert found["worst_group"] == (0, 1)
    assert found["mean_of_groups"] == (0.5, 3)
    assert found["weighted_mean"] == (pytest.approx(0.9), 3)
    assert found["absent_groups"] == (1, 3)
    assert found["auc"] == (pytest.approx(0.75), 4)
    assert found["aupr"] == (pytest.approx(5 / 6), 4)
    assert found["ece"] == (pytest.approx((0.1 + 0.7 + 0.4 + 0.2) / 4), 4)
    assert found["published_ece"] == (pytest.approx((0.1 + 0.7 + 0.4 + 0.2) / 4), 4)
    assert found["absent_classes"] == (0, 4)


def test_counterfactual_channels_do_not_count_in_the_summary():
    logits, labels = torch.randn(9, 3, generator=experiment.generator(0, "logits")), torch.arange(9) % 2
    wide = torch.cat([logits, 9 * torch.ones(9, 3)], 1)
    plain = measure.summary(logits, labels, None, None, classes=3)
    assert measure.summary(wide, labels, None, None, classes=3) == plain
    assert "worst_group" not in plain
    assert plain["absent_classes"] == (1, 9)
    assert "weighted_mean" not in measure.summary(logits, labels, labels, None, classes=3)
    with pytest.raises(UserError, match="3 classes must have 3 or 6 columns, not 4"):
        measure.summary(wide[:, :4], labels, None, None, classes=3)


def test_summary_of_nothing_and_of_what_is_not_finite():
    found = measure.summary(torch.zeros(0, 3), torch.zeros(0).long(), torch.zeros(0).long(), [0.5, 0.5], classes=3)
    assert {name for name, (value, _) in found.items() if value is not None} == {"absent_groups", "absent_classes"}
    assert all(n == 0 for _, n in found.values())
    with pytest.raises(UserError, match="logits are not finite"):
        measure.summary(torch.tensor([[NAN, 0.0]]), torch.tensor([0]), None, None, classes=2)
