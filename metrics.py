"""What is measured: reconstruction, the VAE's loss, and distances between sets of images in a classifier's features.

Every function evaluates in batches without gradients. Sums and matrix arithmetic are float64 on the CPU; a distance
that its sample cannot carry is refused with a UserError instead of returned as a number.
"""

from pathlib import Path

import torch

from experiment import UserError, generator

BATCH = 500  # images at a time; the fastest size measured on 2 cores

# --- reconstruction ---------------------------------------------------------------------------


@torch.no_grad()
def per_image(function, images, eps=None, batch=BATCH):
    """function(x, eps) of all images (N, ...), a batch at a time, as one tensor (N, ...); eps (N, latent) or None."""
    chunks = images.split(batch)
    noise = [None] * len(chunks) if eps is None else eps.split(batch)
    return torch.cat([function(x, e) for x, e in zip(chunks, noise, strict=True)])


def mean_squares(made, truth):
    """Mean squared difference of each pair of images (N, C, H, W), (N,), in squared units of a pixel."""
    return (made - truth).square().flatten(1).mean(1)


def mean_where(values, part):
    """(mean of values (N,) where the mask `part` (N,) holds, in float64 on the CPU, or None if nowhere; how many)."""
    chosen = values[part]
    return (float(chosen.cpu().double().mean()) if len(chosen) else None), len(chosen)


def iou(a, b):
    """Intersection over union of each pair of boolean masks (N, ...): (N,), in [0, 1], and 0 where both are empty."""
    return (a & b).flatten(1).sum(1) / (a | b).flatten(1).sum(1).clamp(1)


def squared_errors(model, images, eps=None):
    """Mean squared error of each reconstruction, (N,), with the latent mean or with the given latent noise."""
    return per_image(model.squared_error, images, eps)


def vae_losses(model, images, eps=None):
    """Negative ELBO of each image in nats, (N,)."""
    return per_image(lambda x, e: sum(model.loss(x, e).values()), images, eps)


def errors(model, images, eps=None):
    """{"mse": (N,), "vae_loss": (N,)} of the images, from one pass."""

    def both(x, e):
        terms, logits = model.loss_and_logits(x, e)
        return torch.stack([mean_squares(torch.sigmoid(logits), x), sum(terms.values())], 1)

    return dict(zip(("mse", "vae_loss"), per_image(both, images, eps).unbind(1), strict=True))


@torch.no_grad()
def accuracy(classifier, digits, batch=BATCH):
    """Share, 0 to 1, of the digits (images (N, C, H, W) in [0, 1]) whose label the classifier ranks first."""
    classifier.eval()
    right = [(classifier(x).argmax(1) == y).sum() for x, y in zip(digits.images.split(batch),
                                                                 digits.labels.split(batch), strict=True)]
    return float(sum(right)) / len(digits)


# --- distances between two sets of images, in feature space -----------------------------------


@torch.no_grad()
def features(classifier, images, batch=BATCH):
    """The classifier's features of images (N, C, H, W) in [0, 1]: (N, F), float64, on the CPU."""
    classifier.eval()
    return torch.cat([classifier.features(x).cpu().double() for x in images.split(batch)])


def moments(feats):
    """Mean (F,) and covariance (F, F) of features (N, F); raises UserError where N < F.

    The rank of the covariance is at most N - 1: of fewer images it would say nothing in many directions.
    """
    n, dim = feats.shape
    if n < dim:
        raise UserError(f"a Fréchet distance of {dim} features needs at least {dim} images, not {n}; "
                        "the kernel distance serves small samples")
    return feats.mean(0), torch.cov(feats.T)


def frechet_distance(a, b):
    """Squared Fréchet distance between Gaussians fitted to features a (N, F) and b (M, F), at least 0.

    |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)), Heusel et al. 2017. The trace of the root is the sum of the roots of
    the eigenvalues of A^(1/2) B A^(1/2), a symmetric matrix: no general matrix root, no imaginary parts.
    """
    (mu_a, cov_a), (mu_b, cov_b) = moments(a.double()), moments(b.double())
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return max(0.0, float((mu_a - mu_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross))


def frechet_if_enough(a, b):
    """frechet_distance, or None where there are fewer images than features."""
    return frechet_distance(a, b) if min(len(a), len(b)) >= a.shape[1] else None


def kernel_distance(a, b, subset, stream, subsets=50):
    """The squared kernel distance between features a (N, F) and b (M, F).

    The unbiased estimate with kernel (x.y / F + 1)^3 (Binkowski et al. 2018, section 4), averaged over random subsets
    of equal size drawn from the torch.Generator `stream`; around 0 for equal distributions, and then also below.
    """
    if min(len(a), len(b)) < subset or subset < 2:
        raise UserError(f"a kernel distance over subsets of {subset} needs as many images, at least 2, "
                        f"not {min(len(a), len(b))}")
    values = torch.tensor([
        _mmd(a[torch.randperm(len(a), generator=stream)[:subset]], b[torch.randperm(len(b), generator=stream)[:subset]])
        for _ in range(subsets)
    ], dtype=torch.double)  # fmt: skip
    return float(values.mean())


def _mmd(a, b):
    a, b = a.double(), b.double()
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
    n, m = len(a), len(b)
    within_a, within_b = kernel(a, a), kernel(b, b)
    within_a, within_b = within_a.sum() - within_a.trace(), within_b.sum() - within_b.trace()
    return float(within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * kernel(a, b).mean())


def sliced_wasserstein(a, b, projections=512):
    """Sliced 2-Wasserstein distance between images a and b, each (N, C, H, W), as many of one as of the other.

    Root mean square over random directions of the distance between the sorted projections (Rabin et al. 2011); the
    directions, unit vectors in pixel space, are always the same. Unit: that of a pixel times the root of their number.
    """
    a, b = a.flatten(1).cpu(), b.flatten(1).cpu()
    if a.shape != b.shape:
        raise UserError(f"as many images of the same size are compared, not {tuple(a.shape)} and {tuple(b.shape)}")
    directions = torch.randn(a.shape[1], projections, generator=generator(0, "projections"))
    directions /= directions.norm(dim=0)
    gaps = (a @ directions).sort(0)[0] - (b @ directions).sort(0)[0]
    return float(gaps.double().square().mean().sqrt() * a.shape[1] ** 0.5)


# --- Inception FID -------------------------------------------------------------------------------


class Inception:
    """The Inception network of pytorch-fid as a feature extractor; its 2,048 features need as many images.

    For digits the number says little (its features are of photographs); it is here to be compared with others' FIDs.
    """

    WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"

    def __init__(self, device):
        from pytorch_fid.inception import InceptionV3  # here, because it is rarely needed

        self.network = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[2048]]).to(device).eval()

    @classmethod
    def load(cls, fetch, device):
        """(Inception, "") or (None, a line that says why not): cached weights, or fetched ones (95 MB) if asked for."""
        path = Path(torch.hub.get_dir()) / "checkpoints" / cls.WEIGHTS
        if not path.is_file() and not fetch:
            return None, f"Inception FID left out: no weights at {path} (--inception fetch gets them, 95 MB)"
        try:
            return cls(device), ""
        except Exception as error:  # every way in which a network or a damaged file can fail
            return None, f"Inception FID left out: its weights cannot be had ({str(error).splitlines()[0]})"

    def eval(self):
        return self

    def features(self, x):
        """(B, 2048) of images (B, 1 or 3, H, W) in [0, 1]; one channel is repeated."""
        return self.network(x.expand(-1, 3, -1, -1))[0].flatten(1)
