"""Speed of part 6's augmentation, against one image after another, and as a share of a training step.

    python -m robust_training.bench      # 2 min on 2 cores

augmentation: a batch of the embedded set at once, against a plain loop that works on one image after another, as data
sets of the originals do. Where no draw is involved both give the same pixels, and the largest difference is recorded
beside the ratio. share: seconds of making the examples of a batch, in those of the whole step of the small network on
them (forward, backward, optimiser). fgsm and pgd are passes of the network itself and have no loop to be compared with;
cagan's infills are painted once, before training.
"""

import statistics
from pathlib import Path

import torch

import backbones
import experiment
import storage
import tables
from robust_training import augment, digits, objective

BATCH: experiment.Count = 64  # images of a batch
STEPS: experiment.Count = 10  # batches in a run
REPEATS: experiment.Count = 5  # pairs of runs, in turn; the ratio is the median over the pairs
PGD_STEPS: experiment.Count = 5  # of pgd, as in README's table
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
RESULTS: Path = Path("results/bench")  # where the records go

EXACT = {"mean", "tile"}  # without a draw


# --- one image after another ------------------------------------------------------------------------


def box_of(mask):
    """(top, bottom, left, right) of a mask (1, H, W)."""
    rows, columns = mask[0].any(1).nonzero()[:, 0], mask[0].any(0).nonzero()[:, 0]
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def loop_grey(image, box):
    return torch.zeros_like(image)


def loop_noise(image, box):
    pixels = torch.rand(3, 1, 1) + augment.NOISE * torch.randn(image.shape)
    return pixels.clamp(0, 1) * 2 - 1


def loop_shuffle(image, box):
    top, bottom, left, right = box
    region = image[:, top:bottom, left:right]
    made = image.clone()
    made[:, top:bottom, left:right] = region.flatten(1)[:, torch.randperm(region[0].numel())].view(region.shape)
    return made


def loop_tile(image, box):
    """The largest strip beside the box, repeated from its own place on."""
    height, width = image.shape[1:]
    top, bottom, left, right = box
    strips = [(0, height, 0, left), (0, height, right, width), (0, top, 0, width), (bottom, height, 0, width)]
    y0, y1, x0, x1 = max(strips, key=lambda s: (s[1] - s[0]) * (s[3] - s[2]))
    strip = image[:, y0:y1, x0:x1]
    many = strip.repeat(1, height // (y1 - y0) + 2, width // (x1 - x0) + 2)
    down, along = -y0 % (y1 - y0), -x0 % (x1 - x0)
    return many[:, down:down + height, along:along + width]


def loop_background_shuffle(image, mask):
    made, outside = image.clone(), ~mask[0]
    pixels = image[:, outside]
    made[:, outside] = pixels[:, torch.randperm(pixels.shape[1])]
    return made


COUNTERFACTUAL = {"mean": loop_grey, "random": loop_noise, "shuffle": loop_shuffle, "tile": loop_tile}
FACTUAL = {"random": loop_noise, "shuffle": loop_background_shuffle}


def counterfactual_loop(name, batch):
    """What augment.counterfactual makes, by a loop over the images."""
    made = []
    for image, rectangle in zip(batch.images, batch.rectangles, strict=True):
        top, bottom, left, right = box = box_of(rectangle)
        one = image.clone()
        one[:, top:bottom, left:right] = COUNTERFACTUAL[name](image, box)[:, top:bottom, left:right]
        made.append(one)
    return torch.stack(made)


def factual_loop(name, batch):
    """What augment.factual makes, by a loop over the images."""
    made = []
    for k, (image, mask) in enumerate(zip(batch.images, batch.masks, strict=True)):
        if name == "mixed_rand":
            others = (batch.labels != batch.labels[k]).nonzero()[:, 0]
            other = int(others[torch.randint(len(others), ())])
            ground = loop_tile(batch.images[other], box_of(batch.rectangles[other]))
        else:
            ground = FACTUAL[name](image, mask)
        made.append(torch.where(mask, image, ground))
    return torch.stack(made)


# --- measured -----------------------------------------------------------------------------------------


def against_loop(kind, name, batch, steps, repeats, device):
    """(median ratio of the loop's seconds to ours, largest difference or None where draws differ)."""
    stream = torch.Generator().manual_seed(0)
    batched = getattr(augment, kind)
    looped = {"counterfactual": counterfactual_loop, "factual": factual_loop}[kind]
    sides = (lambda: [batched(name, batch, stream) for _ in range(steps)],
             lambda: [looped(name, batch) for _ in range(steps)])  # fmt: skip
    for side in sides:
        side()  # once to warm up
    pairs = experiment.in_turn(sides, repeats, device)
    ours, theirs = pairs[-1][0][1][0], pairs[-1][1][1][0]
    gap = float((ours - theirs).abs().max()) if name in EXACT else None
    return statistics.median(theirs[0] / ours[0] for ours, theirs in pairs), gap


def share_of_step(augmentation, batch, steps, repeats, device):
    """(median share of making the examples in a training step, seconds of the step)."""
    with experiment.seeded(0, "bench"):
        model = backbones.build("small", augmentation.classes).to(device)
    goal, optimiser = objective.Objective(model), torch.optim.AdamW(model.parameters())

    def learn(examples):
        sum(goal(examples).values()).backward()
        optimiser.step()
        optimiser.zero_grad()

    learn(augmentation(batch, 0, 0, model))
    found = []
    for _ in range(repeats):
        made = [experiment.seconds(lambda k=k: augmentation(batch, 0, k, model), device) for k in range(steps)]
        learning = sum(experiment.seconds(lambda one=one: learn(one), device)[0] for _, one in made)
        making = sum(seconds for seconds, _ in made)
        found.append((making / (making + learning), (making + learning) / steps))
    return tuple(statistics.median(values) for values in zip(*found, strict=True))


def main(batch, steps, repeats, pgd_steps, device, results):
    given = {"batch": batch, "steps": steps, "repeats": repeats, "pgd_steps": pgd_steps}
    device = experiment.pick_device(device)
    scenes = digits.read("ten", "val", device)
    scenes.paint_over(lambda images, holes: images)  # cagan's infills, whose content costs nothing
    some = next(iter(scenes.batches(batch)))
    rows = []
    for kind, names in (("counterfactual", augment.COUNTERFACTUALS), ("factual", augment.FACTUALS)):
        for name in names:
            arm, ratio, gap = f"{kind} {name}", None, None
            which = {"counterfactual": "inpaint", "factual": "f_inpaint"}[kind]
            augmentation = objective.Augmentation(10, **{which: name}, pgd_steps=pgd_steps)
            share, seconds = share_of_step(augmentation, some, steps, repeats, device)
            baseline = "one image after another"
            records = storage.Records(results, "robust_training.bench", given | {"baseline": baseline}, device)
            records.add(arm, "digits", "share_of_step", share, batch * steps, 0)
            records.add(arm, "digits", "seconds_a_step", seconds, batch * steps, 0)
            if name not in ("cagan", "fgsm", "pgd"):
                ratio, gap = against_loop(kind, name, some, steps, repeats, device)
                records.add(arm, "digits", "speedup", ratio, batch * steps, 0)
                records.add(arm, "digits", "difference", gap, batch * steps, 0)
            records.save()
            rows.append([arm, "–" if ratio is None else f"{ratio:.1f}", f"{100 * share:.1f} %", f"{1e3 * seconds:.0f}"])
    print(tables.markdown(["what", "times faster than a loop", "share of a step", "ms a step"], rows))


if __name__ == "__main__":
    experiment.run(main)
