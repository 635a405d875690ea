"""The judges: what they say of images whose quality is known."""

import types

import pytest
import torch
from conftest import ROOT

import counterfactual_metrics as judged
import counterfactual_report
import counterfactual_study
import datasets
import search
import storage
import train
from experiment import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return datasets.mnist("test", root=ROOT / "data")[torch.arange(400)]


@pytest.fixture(scope="module")
def oracle():
    return train.load(ROOT / "runs/residual_cnn_mnist", "residual_cnn", "mnist", CPU)[0]


def goal_for(targets):
    return search.ClassGoal(None, targets, 0.99)


def test_the_oracle_agrees_with_the_truth_and_not_with_other_targets(digits, oracle):
    right = judged.oracle_sees(oracle, goal_for(digits.labels), digits.images)
    wrong = judged.oracle_sees(oracle, goal_for((digits.labels + 1) % 10), digits.images)
    assert right["oracle"].mean() > 0.98
    assert wrong["oracle"].mean() < 0.02
    assert right["oracle_confidence"].mean() > 0.97
    confidence = oracle(digits.images[:1]).softmax(1)[0, digits.labels[0]].item()
    assert right["oracle_confidence"][0].item() == pytest.approx(confidence, abs=1e-5)


def test_neighbours_are_a_share_of_ten():
    known = torch.arange(40.0).view(40, 1)
    labels = (torch.arange(40) < 20).long()
    goal = goal_for(torch.ones(3, dtype=torch.long))
    shares = judged.neighbours(torch.tensor([[0.0], [39.0], [19.5]]), goal, known, labels)
    assert shares.tolist() == [1, 0, 0.5]
    with pytest.raises(UserError, match="10 neighbours need as many"):
        judged.neighbours(torch.zeros(1, 1), goal_for(torch.ones(1)), known[:5], labels[:5])


class Autoencoders:
    """Class 0's gives zeros, class 1's ones, that of all one half."""

    def reconstruct(self, x):
        return torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1).expand(len(x), 3, x[0].numel())


def test_im1_and_im2_of_known_autoencoders():
    x = torch.full((1, 1, 2, 2), 0.75)
    found = judged.interpretability(Autoencoders(), x, torch.tensor([0]), torch.tensor([1]))
    assert found["im1"].item() == pytest.approx((4 * 0.25**2) / (4 * 0.75**2))
    assert found["im2"].item() == pytest.approx((4 * 0.5**2) / (4 * 0.75))


def test_distances():
    a, b = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    a[0, 0, 0, 0] = 0.8
    found = judged.distances(a, b, torch.tensor([[3.0, 4.0], [0, 0]]), torch.zeros(2, 2))
    assert found["l1"].tolist() == pytest.approx([0.2, 0])
    assert found["l2"].tolist() == pytest.approx([0.8, 0])
    assert found["latent"].tolist() == [5, 0]
    assert "latent" not in judged.distances(a, b)


def test_real_rows_are_what_was_asked_for_and_mostly_different(digits):
    targets = (digits.labels[:200] + 3) % 10
    rows = judged.real_rows(goal_for(targets), digits.labels)
    assert torch.equal(digits.labels[rows], targets)
    assert len(rows.unique()) > 80
    with pytest.raises(UserError, match="nothing to compare with"):
        judged.real_rows(goal_for(torch.tensor([3])), torch.zeros(5, dtype=torch.long))


def test_class_autoencoders_know_their_class(digits):
    nets = train.load(ROOT / "runs/class_autoencoders_mnist", "class_autoencoders", "mnist", CPU)[0]
    origins = (digits.labels + 1) % 10
    own = judged.interpretability(nets, digits.images, origins, digits.labels)["im1"]
    other = judged.interpretability(nets, digits.images, digits.labels, origins)["im1"]
    assert own.mean() < 0.8
    assert other.mean() > 1.5


def test_report_says_better_worse_and_undecided():
    def rows(value, half):
        make = lambda arm, metric, v: {"arm": arm, "metric": metric, "value": v, "n": 500}
        found = [make(arm, metric, 0.5) for arm in ("glow", "pixel", "real") for metric in ("oracle", "validity")]
        return [*found, make("glow", "oracle half", 0.01), make("glow", "oracle minus pixel", value),
                make("glow", "oracle minus pixel half", half)]  # fmt: skip

    for value, half, words in ((0.2, 0.1, "pixel attack for: glow on strokes. They do worse for: none."),
                               (-0.2, 0.1, "They do worse for: glow on strokes. Not decided: none"),
                               (0.05, 0.1, "Not decided: glow on strokes.")):  # fmt: skip
        cells = {("strokes", "glow"): rows(value, half)}
        assert words in counterfactual_report.claims(cells)
    text = counterfactual_report.table(cells, "strokes")
    assert "| glow | 50.0 % | 50.0 ± 1.0 % |" in text
    assert "500 test images" in text


def test_the_oracle_must_not_judge_itself(oracle):
    found = types.SimpleNamespace(classifier=oracle, data="mnist")
    with pytest.raises(UserError, match="the oracle is the very network that is explained"):
        counterfactual_study.judges_of(found, 0, CPU)


def test_cases_have_targets_that_the_classifier_does_not_see(digits):
    import latent_counterfactuals as script

    found = script.set_up("mnist", "image_vae", "latent", None, None, None, None, CPU)
    cases = counterfactual_study.draw_cases(found, None, 300, 0, CPU)
    assert (cases.targets != cases.seen).all()
    assert len(cases.targets.unique()) == 10
    again = counterfactual_study.draw_cases(found, None, 300, 0, CPU)
    assert torch.equal(cases.images, again.images)
    given = counterfactual_study.draw_cases(found, "4", 50, 0, CPU)
    assert (given.targets == 4).all()
    assert (given.seen != 4).all()


# --- by hand ------------------------------------------------------------------------------------------


class Pixel(torch.nn.Module):
    """Sees class 1 in images (B, 1, 1, 2) where one pixel is above one half: logits 0 and 10 (pixel - 1/2)."""

    def __init__(self, which):
        super().__init__()
        self.which = which

    def features(self, x):
        return x[:, 0, 0, self.which, None].expand(-1, 4)

    def forward(self, x):
        odds = 10 * (x[:, 0, 0, self.which] - 0.5)
        return torch.stack([torch.zeros_like(odds), odds], 1)

    def count(self, x):
        return 10 * x[:, 0, 0, self.which]


def pairs(*pixels):
    return torch.tensor(pixels).view(-1, 1, 1, 2)


def test_what_the_oracle_sees_by_hand():
    x, bound = pairs((0.6, 0), (0.4, 0)), torch.full((2,), 5.0)
    found = judged.oracle_sees(Pixel(0), search.ClassGoal(None, torch.tensor([1, 1]), 0.99), x)
    assert found["oracle"].tolist() == [1, 0]
    e = torch.e
    assert found["oracle_confidence"].tolist() == pytest.approx([e / (1 + e), 1 / (1 + e)])
    for direction, met in ((1.0, [1, 0]), (-1.0, [0, 1])):
        found = judged.oracle_sees(Pixel(0), search.CountGoal(None, torch.full((2,), direction), bound), x)
        assert found["oracle"].tolist() == met
        assert found["oracle_count"].tolist() == pytest.approx([6, 4])


def test_neighbours_of_counts():
    known = torch.arange(20.0).view(20, 1)  # each counts as much as its place
    goal = search.CountGoal(None, torch.tensor([1.0, -1.0]), torch.tensor([5.0, 2.0]))
    shares = judged.neighbours(torch.zeros(2, 1), goal, known, known.flatten())
    assert shares.tolist() == pytest.approx([0.5, 0.3])  # of 0 to 9, at least 5, at most 2


@pytest.fixture
def study():
    """(judges, cases, goal): three pairs of pixels that are to become class 1, which the first pixel says."""
    known = torch.linspace(0, 1, 12, dtype=torch.double)
    features, labels = known.view(12, 1).expand(12, 4), (known > 0.5).long()
    judges = counterfactual_study.Judges(Pixel(0), None, Pixel(1), features, labels)
    test = datasets.Digits(pairs((1, 0), (0.9, 0), (0, 0)).float(), torch.tensor([1, 1, 0]))
    cases = counterfactual_study.Cases(pairs((0.1, 0.1), (0.2, 0.9), (1.0, 0.4)), torch.tensor([0, 0, 1]),
                                       torch.ones(3, dtype=torch.long), test)  # fmt: skip
    return judges, cases, search.ClassGoal(Pixel(0), cases.targets, 0.99)


def test_an_arm_by_hand(study):
    judges, cases, goal = study
    images = pairs((0.9, 0.2), (0.3, 0.1), (1.0, 0.4))
    outcome = search.Outcome([search.REACHED, search.FAILED, search.ALREADY], torch.tensor([3, 9, 0]),
                             torch.tensor([0.99, 0.2, 0.995]), images, images)  # fmt: skip
    made = cases.images + pairs((0.1, 0), (0, 0), (0, 0.2))
    each, whole = counterfactual_study.measure_arm(cases, goal, judges, outcome, made, cases.images, 7.0)
    assert each["validity"].tolist() == [1, 0, 1]
    assert each["oracle"].tolist() == [1, 0, 1]
    assert each["identity"].tolist() == [1, 0, 1]  # the second pixel of the second pair has changed sides
    assert each["reconstruction"].tolist() == pytest.approx([0.005, 0, 0.02])
    assert each["l1"].tolist() == pytest.approx([0.45, 0.45, 0])
    assert whole == {"fid": None, "seconds": 7}  # three images are too few for four features


def test_real_images_by_hand(study):
    judges, cases, goal = study
    each, _ = counterfactual_study.real_arm(cases, goal, judges)
    # the first, the second and again the first of the test set: their odds are e^5, e^4, e^5, and 99 are asked for
    assert each["validity"].tolist() == [1, 0, 1]
    assert each["oracle"].tolist() == [1, 1, 1]
    assert "identity" not in each


def test_a_kept_search_is_that_of_its_device(study, tmp_path, monkeypatch):
    _, cases, goal = study
    found = types.SimpleNamespace(classifier=goal.classifier, data="pairs")
    for name in ("one", "other", "one"):
        monkeypatch.setattr(storage, "device_name", lambda device, name=name: name)
        counterfactual_study.kept_search(tmp_path, found, 0.1, 1, cases, goal, 0.0, 10)
    assert len(list((tmp_path / "kept").iterdir())) == 2
