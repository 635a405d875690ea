"""Losses of counterfactuals and groups against their definitions."""

import math

import pytest
import torch

from experiment import UserError
from robust_training import losses

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]])
LABELS = torch.tensor([0, 2])


def test_counterfactual_losses_are_what_they_are_called():
    p = LOGITS.softmax(1)
    expected = {"logp": -torch.log(1 - p[[0, 1], LABELS]), "uniform": -p.log().mean(1),
                "uniform_except": torch.stack([-(p[0, 1].log() + p[0, 2].log()) / 2, -p[1, :2].log().mean()])}
    for name, values in expected.items():
        assert torch.allclose(losses.counterfactual(name, LOGITS, LABELS), values, atol=1e-6), name


def test_logp_of_two_classes_is_the_cross_entropy_of_the_other():
    logits, labels = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 2
    wanted = torch.nn.functional.cross_entropy(logits, 1 - labels, reduction="none")
    assert torch.allclose(losses.logp(logits, labels), wanted, atol=1e-6)


def test_logp_is_right_where_one_minus_p_is_zero():
    found = losses.counterfactual("logp", torch.tensor([[60.0, 0.0, 0.0]]).half(), torch.tensor([0]))
    assert float(found) == pytest.approx(60 - math.log(2), abs=1e-3)


def test_channels_ask_for_the_channel_of_their_class():
    logits = torch.tensor([[0.0, 0.0, 0.0, 5.0]])
    assert losses.outputs("channels", 2) == 4
    assert losses.outputs(None, 2) == 2
    assert float(losses.channels(logits, torch.tensor([1]))) == pytest.approx(math.log(1 + 3 * math.exp(-5)))
    shares = torch.tensor([[0.5, 0.5]])
    assert float(losses.classification(logits, shares)) == pytest.approx(5 + math.log(1 + 3 * math.exp(-5)), abs=1e-5)


def test_labels_cost_minus_the_log_of_their_share():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)]]).half()
    found = losses.classification(logits, torch.tensor([1, 0]))
    assert found.tolist() == pytest.approx([math.log(4 / 3), math.log(4)], abs=1e-3)
    assert found.dtype == torch.float32


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="no counterfactual loss is called 'none'; there are logp, uniform"):
        losses.counterfactual("none", LOGITS, LABELS)


def test_the_worst_group_gains_weight_as_published():
    worst = losses.WorstGroup(3, 0.5, "cpu")
    found = worst(torch.tensor([1.0, 3.0, 0.5]), torch.tensor([0, 0, 2]))
    weights = torch.tensor([math.exp(1.0), 1.0, math.exp(0.25)])
    weights = weights / weights.sum()
    assert torch.allclose(worst.weights, weights)
    assert float(found) == pytest.approx(float(weights[0] * 2 + weights[2] * 0.5))
    with pytest.raises(UserError, match="above 0"):
        losses.WorstGroup(3, 0.0, "cpu")


def test_groups_say_whether_the_background_agrees():
    assert losses.groups_of(torch.tensor([0, 0, 4]), torch.tensor([0, 1, 4])).tolist() == [1, 0, 9]
