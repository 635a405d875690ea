"""The MNIST classifier: its shape, and the accuracy of the committed one."""

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
