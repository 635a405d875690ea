"""What a trained CGN is made of: which label each mechanism answers to, how many masks are good, and what a VAE lacks.

    python -m cgn.analyse --variant double_colored           # masks and labels of the run of seed 0; 1 min
    python -m cgn.analyse --run runs/NAME                    # another run of the same variant
    python -m cgn.analyse --variant colored --vae            # a plain VAE beside it: is there a blue zero? 3 min

Labels: of each sample one mechanism's label is changed, everything else, latents and crops, stays. A reader of shapes,
one of objects and one of backgrounds then say what they see. If the mechanisms are independent, only the reader of the
one that was moved changes its mind. Masks: a class has good masks if a reader trained on true ones reads 90 % of them
rightly. Writes records, and for the VAE a figure.
"""

from pathlib import Path

import torch
from tqdm import tqdm

import architecture
import datasets
import experiment
import figures
import storage
from cgn import data, generate, mechanisms, readers, train

# --- what is analysed -----------------------------------------------------------------------------
VARIANT: str = "colored"  # a name of data.VARIANTS
TEXTURES: Path | None = None  # folder of wildlife's textures, as in training
RUN: Path | None = None  # run folder of cgn.train; by default that of the variant and seed
CHECKPOINT: Path | None = None  # another file to take instead, also a published one
COUNT: experiment.Count = 2000  # samples
VAE: bool = False  # train a plain VAE on the variant and ask it for digits in the colours of others
SEED: experiment.Index = 0  # of the run, and of what is drawn here
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
PRECISION: experiment.Precision = "auto"  # of the networks
RESULTS: Path = Path("results/cgn")  # where figures and records go

MECHANISMS = ("shape", "object", "background")
VAE_STEPS, VAE_BATCH, VAE_LR = 3000, 128, 1e-3  # 6 times through the training set
VAE_SETTINGS = {"latent": 16, "width": 32, "deviation": 0.15}  # so that samples of the prior are digits
VAE_WARM = 0.4  # share of the steps in which the KL's weight rises to 1: from the start, it keeps all images black
SURE = 0.9  # a reading counts if it is at least as sure as this


@torch.no_grad()
def made(generator, labels, latents, seed, context):
    """Parts of a generator in chunks, each with the windows of its own stream."""
    found = []
    for k, index in enumerate(torch.arange(len(labels[0]), device=labels[0].device).split(500)):
        with context():
            found.append(generator.parts([y[index] for y in labels], [z[index] for z in latents],
                                         experiment.generator(seed, f"analysed/{k}")))
    return mechanisms.Parts(*(torch.cat(part) for part in zip(*found, strict=True)))


def moved(generator, variant, nets, n, seed, context):
    """A list of (mechanism moved, reader, share of samples of which the reader changed its mind, share of which its own
    reader now reads the new label, else None, samples counted).

    Only samples of which the reader read the old label are counted: what it cannot read at all is left out.
    """
    stream, device = experiment.generator(seed, "moved labels"), variant.device
    old = [torch.randint(data.CLASSES, (n,), generator=stream).to(device) for _ in MECHANISMS]
    latents = mechanisms.draw_latents(n, stream, device)
    before = made(generator, old, latents, seed, context).image()
    first = {name: readers.read(net, before)[0] for name, net in nets.items()}
    rows = []
    for place, mechanism in enumerate(MECHANISMS):
        step = torch.randint(1, data.CLASSES, (n,), generator=stream).to(device)
        new = [*old]
        new[place] = (old[place] + step) % data.CLASSES
        after = made(generator, new, latents, seed, context).image()
        for name, net in nets.items():
            known = first[name] == old[MECHANISMS.index(name)]
            now = readers.read(net, after)[0]
            changed = (now != first[name])[known].float().mean()
            followed = float((now == new[place])[known].float().mean()) if name == mechanism else None
            rows.append((mechanism, name, float(changed), followed, int(known.sum())))
    return rows


def independent(variant):
    """The readers that this variant has: colored has one background, black."""
    return MECHANISMS[:2] if variant.name == "colored" else MECHANISMS


# --- the VAE -----------------------------------------------------------------------------------------


def train_vae(variant, seed):
    """A plain convolutional VAE of the variant's images, in evaluation mode."""
    shapes = variant.shapes("train")
    with experiment.seeded(seed, "vae"):
        model = architecture.build("image_vae", shape=(3, data.SIDE, data.SIDE), **VAE_SETTINGS).to(variant.device)
    optimizer = torch.optim.Adam(model.parameters(), VAE_LR, fused=True)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, VAE_LR, total_steps=VAE_STEPS, pct_start=0.1)
    model.train()
    for step in tqdm(range(VAE_STEPS), desc="vae", unit="step", disable=None):
        stream = experiment.generator(seed, f"vae/{step}")
        images = (variant.batch(shapes, VAE_BATCH, stream).images + 1) / 2
        terms = model.loss(images, model.noise(len(images), stream))
        loss = terms["gaussian"].mean() + min(1.0, step / (VAE_WARM * VAE_STEPS)) * terms["kl"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
    return model.eval()


def mixtures(images, shape_reader, object_reader):
    """(share of sure images whose shape and colour are of different classes, (N,) which they are, sure ones)."""
    shape, sure_shape = readers.read(shape_reader, images)
    colour, sure_colour = readers.read(object_reader, images)
    sure = (sure_shape > SURE) & (sure_colour > SURE)
    mixed = sure & (shape != colour)
    return float(mixed.sum() / sure.sum().clamp(1)), shape, colour, sure


@torch.no_grad()
def compare_vae(generator, variant, nets, n, seed, context, records, path):
    """Records and figure: how often real images, VAE and CGN have a digit in the colour of another class.

    Colours overlap between classes, so that the reader is wrong on some training images: their share is the floor.
    """
    model = train_vae_cached(variant, seed)
    sampled = (model.sample(n, experiment.generator(seed, "vae samples")) * 2 - 1).clamp(-1, 1)
    plain = generate.Source(generator, variant.device, seed, context=context, factual=True)
    counter = generate.Source(generator, variant.device, seed, context=context)
    real = variant.batch(variant.shapes("train"), n, experiment.generator(seed, "vae against real")).images
    made = {"cgn, one label": plain, "cgn, counterfactual": counter}
    sets = {"training images": real, "vae": sampled} | {
        name: datasets.from_bytes(generate.in_memory(source, n)[0]) for name, source in made.items()}  # fmt: skip
    rows = []
    for name, images in sets.items():
        share, shape, colour, sure = mixtures(images, nets["shape"], nets["object"])
        records.add(name, variant.name, "digit in another class's colour", share, int(sure.sum()), seed)
        zeros = sure & (shape == 0)
        blue = zeros & (colour == 3)  # the class whose colour is blue
        records.add(name, variant.name, "blue zeros among zeros", float(blue.sum() / zeros.sum().clamp(1)),
                    int(zeros.sum()), seed)
        order = torch.cat([(zeros & (colour == k)).nonzero()[:1, 0] for k in range(data.CLASSES)]).tolist()
        rest = [k for k in zeros.nonzero()[:, 0].tolist() if k not in order]
        rows.append([(images[k] + 1) / 2 for k in (order + rest)[:10]])
    while min(map(len, rows)) < 10:  # too few zeros to fill a row
        for row in rows:
            row += [torch.ones(3, data.SIDE, data.SIDE)] * (10 - len(row))
    figures.image_grid(path, rows, [""] * 10, [name.replace(", ", ",\n") for name in sets], [[""] * 10] * len(sets),
                       "Zeros, one of each colour that a reader finds among the samples, then more")


def train_vae_cached(variant, seed):
    """The VAE in runs/cgn_vae_VARIANT, trained at the first use."""
    path = Path("runs") / f"cgn_vae_{variant.name}{f'_seed{seed}' * bool(seed)}/ckpt/best.pt"
    if path.is_file():
        return architecture.restore(storage.load_checkpoint(path)).to(variant.device)
    with torch.enable_grad():
        model = train_vae(variant, seed)
    made = {"name": "image_vae", "settings": {"shape": [3, data.SIDE, data.SIDE]} | VAE_SETTINGS}
    storage.save_checkpoint(path, {"architecture": made, "model": model.state_dict()})
    return model


def main(variant, textures, run, checkpoint, count, vae, seed, device, precision, results):
    device = experiment.pick_device(device)
    painted = data.Variant(variant, device, textures)
    named = painted.textures_name
    folder = run or train.run_of("cgn", variant, named, seed)
    path = checkpoint or folder / "ckpt/best.pt"
    generator, _, trained = generate.load(path, variant, named, device)
    if vae and variant != "colored":
        raise experiment.UserError(f"--vae asks for blue zeros, and is for colored, not {variant}")
    if trained and trained["model"] == "gan":
        raise experiment.UserError(f"{path} is a GAN: it has no mechanisms to analyse")
    context = experiment.in_precision(device, precision)
    options = {"variant": variant, "textures": named, "run": run, "checkpoint": checkpoint and checkpoint.name,
               "seed": seed, "count": count, "vae": vae, "precision": precision, "trained": trained or "published",
               "generator": "checkpoint" if checkpoint else folder.resolve().name,
               "weights": storage.digest(path)}  # fmt: skip
    records = storage.Records(results, "analyse", options, device)
    nets = {name: readers.reader(name, painted, named, context) for name in independent(painted)}
    if vae:
        compare_vae(generator, painted, nets, count, seed, context, records, Path(results) / f"vae_{variant}.png")
    else:
        labels = torch.arange(data.CLASSES, device=device).repeat_interleave(-(-count // data.CLASSES))
        latents = mechanisms.draw_latents(len(labels), experiment.generator(seed, "masks"), device)
        masks = made(generator, (labels,) * 3, latents, seed, context).mask
        shares, good = readers.good_masks(readers.reader("mask", painted, named, context), masks, labels)
        records.add("cgn", variant, "good masks", good, data.CLASSES, seed)
        records.add("cgn", variant, "masks read rightly", float(shares.mean()), len(labels), seed)
        records.add("cgn", variant, "mean mask", float(masks.mean()), len(labels), seed)
        for mechanism, name, changed, followed, n in moved(generator, painted, nets, count, seed, context):
            records.add(mechanism, variant, "changed", changed, n, seed, reader=name)
            if followed is not None:
                records.add(mechanism, variant, "followed", followed, n, seed, reader=name)
    for row in records.save():
        reader = f", {row['setting']['reader']}" if row["setting"] else ""
        print(f"{row['arm']}{reader}, {row['metric']}: {row['value']:.3f}")


if __name__ == "__main__":
    experiment.run(main)
