"""How good counterfactuals are, image by image, by judges that took no part in making them.

    oracle          another network, of another architecture and seed: does it see what was asked for?
    neighbours      share of the 10 nearest training images, in the oracle's features, that are what was asked for
    IM1, IM2        Van Looveren and Klaise 2019, section 3.2: by autoencoders of the classes
    distances       to the original image, in pixels and in the latent space

All tensors stay on the device of the images. Sets of images are compared by metrics.frechet_distance in the oracle's
features (counterfactual FID): not in those of the Inception network, so it compares with no other FID.
"""

import torch

import metrics
from experiment import UserError

# --- the oracle -----------------------------------------------------------------------------------


@torch.no_grad()
def oracle_sees(oracle, goal, images):
    """{"oracle": (B,) 1 where the oracle, too, sees the goal met, ...}; also its confidence, or its count.

    For classes: its first choice is the target. For counts: its count is on the goal's side of the bound.
    """
    oracle.eval()
    if hasattr(goal, "targets"):
        logits = metrics.per_image(lambda x, _: oracle(x), images)
        confidence = logits.softmax(1).gather(1, goal.targets.unsqueeze(1)).squeeze(1)
        return {"oracle": (logits.argmax(1) == goal.targets).float(), "oracle_confidence": confidence}
    counts = metrics.per_image(lambda x, _: oracle.count(x), images)
    met = goal.meets(counts.unsqueeze(1)).squeeze(1).float()
    return {"oracle": met, "oracle_count": counts}


def neighbours(features, goal, known, labels, k=10):
    """Share of the k nearest of the known features whose label is what the goal asks for, (B,).

    features: (B, F) of the images; known: (N, F) of training images with labels (N,).
    """
    if len(known) < k:
        raise UserError(f"{k} neighbours need as many training images, not {len(known)}")
    shares = []
    for rows in torch.arange(len(features)).split(metrics.BATCH):
        near = torch.cdist(features[rows], known).topk(k, largest=False).indices.to(labels.device)
        shares.append(goal[rows.to(labels.device)].meets(labels[near]).float().mean(1))
    return torch.cat(shares)


# --- interpretability by autoencoders ----------------------------------------------------------------


@torch.no_grad()
def interpretability(autoencoders, images, origins, targets):
    """{"im1": (B,), "im2": (B,)}, both better when lower.

    IM1 = |x' - AE_target(x')|^2 / |x' - AE_origin(x')|^2: is x' nearer to the manifold of the target's class than to
    that of its origin? IM2 = |AE_target(x') - AE_all(x')|^2 / |x'|_1: does the target's autoencoder see in it what
    that of all classes sees?
    """
    rows = torch.arange(len(images), device=images.device)
    seen = metrics.per_image(lambda x, _: autoencoders.reconstruct(x), images)  # (B, classes + 1, D)
    flat, target, origin, every = images.flatten(1), seen[rows, targets], seen[rows, origins], seen[:, -1]
    squares = lambda a, b: (a - b).square().sum(1)
    tiny = 1e-8
    return {"im1": squares(flat, target) / (squares(flat, origin) + tiny),
            "im2": squares(target, every) / (flat.abs().sum(1) + tiny)}


# --- distances ------------------------------------------------------------------------------------------


def distances(images, originals, points=None, starts=None):
    """{"l1": mean absolute change of a pixel, "l2": length of the change, "latent": length in the latent space}."""
    change = (images - originals).flatten(1)
    found = {"l1": change.abs().mean(1), "l2": change.norm(dim=1)}
    return found if points is None else found | {"latent": (points - starts).flatten(1).norm(dim=1)}


def real_rows(goal, labels):
    """For each image the position of a real image, of those with these labels (N,), that its goal is met by: (B,).

    Each image starts looking elsewhere, so that few real images are taken twice; the mix of goals is kept. Raises
    UserError where none is what was asked for.
    """
    found = []
    for i in range(len(goal.threshold)):
        wanted = goal[torch.tensor([i], device=labels.device)].meets(labels.unsqueeze(0))[0].nonzero().squeeze(1)
        if not len(wanted):
            raise UserError("no real image is what was asked for: there is nothing to compare with")
        found.append(wanted[i * 7919 % len(wanted)])  # a prime: two take the same if len(wanted) divides i - j
    return torch.stack(found)
