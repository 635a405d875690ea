"""The MNIST classifier: its shape, and the accuracy of the committed one."""

import math

import pytest
import torch
import torch.nn.functional as F

import classifiers
import experiment
import metrics
import storage
import train
from experiment import UserError


def test_features_feed_the_head(images):
    with experiment.seeded(0, "cnn"):
        net = classifiers.build("mnist_cnn").eval()
    assert net.features(images).shape == (12, 256)
    assert torch.equal(net(images), net.head(net.features(images)))
    labels = torch.arange(12) % 10
    assert torch.allclose(net.loss(images, labels)["cross_entropy"].mean(), F.cross_entropy(net(images), labels))


def test_restoring_refuses_what_does_not_fit(model):
    with pytest.raises(UserError, match="no classifier is called"):
        classifiers.build("vae")
    with pytest.raises(UserError, match="does not say which classifier"):
        classifiers.restore(model.state_dict())


def test_the_committed_classifier_is_as_good_as_asked(test_digits):
    net = train.load_classifier("runs/mnist_cnn", "cpu")
    right = metrics.accuracy(net, test_digits)
    assert right >= 0.992
    recorded = [row for row in storage.read_lines("results/train/metrics.jsonl") if row["metric"] == "accuracy"]
    assert recorded[0]["value"] == pytest.approx(right, abs=2e-4)


def test_the_loss_of_the_counting_u_net_is_that_of_map_and_count(monkeypatch):
    net = classifiers.build("counting_unet", width=1)
    monkeypatch.setattr(net, "forward", lambda x: torch.full((1, 1, 2, 2), 0.5))
    assert net.count(None).tolist() == [2]
    terms = net.loss(None, torch.tensor([5.0]), torch.full((1, 1, 2, 2), 0.25))
    assert terms["density"].tolist() == pytest.approx([200 * 4 * 0.25**2])
    assert terms["count"].tolist() == pytest.approx([0.1 * (2 - 5) ** 2])


def test_the_loss_of_a_residual_network_that_counts_is_the_squared_error(monkeypatch):
    net = classifiers.build("residual_cnn", outputs=1)
    monkeypatch.setattr(net, "features", lambda x: torch.full((2, 64), 0.25))
    with torch.no_grad():
        net.head.weight.fill_(1)
        net.head.bias.fill_(0.5)
    assert net.count(None).tolist() == [16.5, 16.5]
    assert net.loss(None, torch.tensor([18.5, 15.5]))["squared_error"].tolist() == [4, 1]


def test_class_autoencoders_of_known_weights():
    """Two pixels, one hidden unit, a code of one: only the code may be negative, only the last layer is squashed."""
    nets, log3 = classifiers.build("class_autoencoders", shape=(1, 1, 2), classes=2, hidden=1, code=1), math.log(3)
    with torch.no_grad():
        nets.weights[0].fill_(1)  # the sum of the pixels
        nets.weights[1].copy_(torch.tensor([-1.0, 1.0, 0.0]).view(3, 1, 1))
        nets.weights[2].fill_(-2)
        nets.weights[3].copy_(torch.tensor([0.0, log3 / 2]).expand(3, 1, 2))
        nets.biases[3][2] = torch.tensor([-log3, log3])
    x = torch.full((2, 1, 1, 2), 0.5)
    # class 0: code -1, then 2, then (0, log 3); class 1: code 1, then 0; the one for all: its bias
    expected = torch.tensor([[0.5, 0.75], [0.5, 0.5], [0.25, 0.75]])
    assert torch.allclose(nets.reconstruct(x), expected.expand(2, 3, 2))
    terms = nets.loss(x, torch.tensor([0, 1]))
    assert terms["own_class"].tolist() == pytest.approx([0.25**2, 0])
    assert terms["all"].tolist() == pytest.approx([2 * 0.25**2] * 2)
