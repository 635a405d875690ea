"""What is minimised: cross-entropy, four losses of counterfactuals, and the worst group's loss.

All are taken from logits in float32, (B, C) and for channels (B, 2 C), and give one number an image, (B,), in nats. A
counterfactual of an image of class y is an image of anything but y (Chang, Adam and Goldenberg 2021, section 3.1):

    logp            -log(1 - p_y); with two classes the cross-entropy of the other one
    uniform         cross-entropy of the uniform distribution
    uniform_except  that of the uniform distribution over the other classes
    channels        the network has 2 C outputs, and a counterfactual of y is of class y + C
"""

import torch
import torch.nn.functional as F

from experiment import UserError
from storage import one_of

# --- counterfactuals ------------------------------------------------------------------------------


def logp(logits, labels):
    """-log(1 - p_y) as log sum_k exp(l_k) - log sum_{k != y} exp(l_k), (B,).

    1 - p_y is 0 in half precision as soon as p_y exceeds 0.9998; this stays exact however near p_y is to 1. Where p_y
    is near 0, and so the loss, it is right up to rounding of the logits' size.
    """
    others = logits.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), -torch.inf)
    return logits.logsumexp(1) - others.logsumexp(1)


def uniform(logits, labels):
    """Cross-entropy (B,) of the uniform distribution over the C classes; labels do not matter."""
    return -F.log_softmax(logits, 1).mean(1)


def uniform_except(logits, labels):
    """Cross-entropy (B,) of the uniform distribution over the C - 1 classes that are not the label."""
    logs = F.log_softmax(logits, 1)
    return (logs.gather(1, labels[:, None])[:, 0] - logs.sum(1)) / (logits.shape[1] - 1)


def channels(logits, labels):
    """Cross-entropy (B,) of class y + C, for logits (B, 2 C)."""
    return F.cross_entropy(logits, labels + logits.shape[1] // 2, reduction="none")


COUNTERFACTUAL = {"logp": logp, "uniform": uniform, "uniform_except": uniform_except, "channels": channels}


def counterfactual(name, logits, labels):
    """The loss of counterfactuals called `name`, (B,); raises UserError for one that is not there."""
    return one_of(COUNTERFACTUAL, "counterfactual loss", name)(logits.float(), labels)


def outputs(name, classes):
    """How many outputs a network needs for this counterfactual loss, or for None."""
    return 2 * classes if name == "channels" else classes


# --- labels ---------------------------------------------------------------------------------------


def classification(logits, targets):
    """Cross-entropy (B,) of targets: labels (B,), or shares of the classes (B, C)."""
    logits = logits.float()
    if targets.ndim == 2 and targets.shape[1] < logits.shape[1]:  # counterfactual channels have no share
        targets = F.pad(targets, (0, logits.shape[1] - targets.shape[1]))
    return F.cross_entropy(logits, targets, reduction="none")


class WorstGroup:
    """Group distributionally robust optimisation (Sagawa et al. 2020, algorithm 1): groups that do worse weigh more.

    Weights q over the groups are multiplied by exp(rate * loss of the group) in every step, and sum to 1. As in their
    experiments, batches should hold all groups alike (fitting.balanced).
    """

    def __init__(self, groups, rate, device):
        if rate <= 0:
            raise UserError(f"the rate of group-DRO must be above 0, not {rate}")
        self.rate, self.weights = rate, torch.full((groups,), 1 / groups, device=device)

    def __call__(self, losses, groups):
        """The weighted loss, a scalar, of losses (B,) of images in groups (B,); groups not in the batch wait."""
        members = F.one_hot(groups, len(self.weights)).float()  # (B, groups)
        sizes = members.sum(0)
        means = losses @ members / sizes.clamp(min=1)
        self.weights = self.weights * (self.rate * means.detach()).exp()
        self.weights = self.weights / self.weights.sum()
        return (self.weights * means).sum()


def groups_of(labels, places):
    """Groups (B,) below 2 C: whether the background agrees with the label (odd) or not (even), for each label."""
    return 2 * labels + (labels == places).long()
