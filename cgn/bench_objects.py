"""Speed of the CGN of objects, in training and generation, with each choice on and off (README, Speed).

    python -m cgn.bench_objects                              # objects64; 4 min on 2 cores
    python -m cgn.bench_objects --config biggan-deep-256 --u2net u2net --batch 8    # 256 pixels, on a GPU

One step of training is that of train_objects, generation makes counterfactuals; weights are random, which costs what
trained ones cost. Each choice is held against the same without it, in turn: channels-last, bfloat16, torch.compile, and
the patches of the texture loss laid out for a whole batch against one image after another, as in the original. The
share of the matrix rate is how much of what this device does in a large product of matrices, measured here in the same
precision, the networks achieve.
"""

import functools
import statistics
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import experiment
import storage
import tables
from cgn import biggan, generate_objects, losses, objects, train_objects
from cgn.bench import Side, compare, per_second

# --- what is timed -----------------------------------------------------------------------------------------
CONFIG: str = "objects64"  # a name in biggan.CONFIGS
U2NET: str = "u2net64"  # a name in u2net.MODELS
BATCH: experiment.Count = 32  # images at once
REPEATS: experiment.Count = 3  # pairs of runs, in turn; the ratio is the median over the pairs
STEPS: experiment.Count = 4  # in a run
COMPILE: bool | None = None  # whether torch.compile is tried; None: on a GPU
SEED: experiment.Index = 0  # of everything drawn
DEVICE: experiment.Device = "auto"  # auto takes cuda, then mps, then cpu
RESULTS: Path = Path("results/bench")  # where the records go

SIDE_OF_PRODUCT = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product says what the device can do


def model_of(config, saliency, seed, device, channels_last=True):
    """An ObjectsCGN with random weights, its statistics of batch norm set to those of standard normals."""
    with experiment.seeded(seed, "bench"):
        model = objects.ObjectsCGN(config, saliency, target=True)
    return model.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def training(model, batch, context, device, seed, compiled=False):
    """A Side: steps of train_objects on images of this model."""
    preset = train_objects.PRESETS["objects64"]
    if compiled:
        for name in (*objects.MECHANISMS, objects.TARGET):
            getattr(model, name).forward = torch.compile(getattr(model, name).forward)
    game = train_objects.Game(model, preset, train_objects.weights_of(preset, None), (batch, 1), 1.0, "random", device,
                              context, seed)  # fmt: skip
    return Side(lambda n: [game.step(number) for number in range(n)], batch)


def generation(model, batch, context, seed):
    """A Side: chunks of counterfactuals."""
    source = generate_objects.Source(model.requires_grad_(False), 1.0, seed, context=context)
    return Side(lambda n: [source.chunk(number, batch) for number in range(n)], batch)


def patches(side, batch, seed, device, looped):
    """A Side: texture grids of a batch of so many pixels a side, at once, or image after image, patch after patch."""
    stream = experiment.generator(seed, "patches")
    images, masks = (torch.rand(batch, channels, side, side, generator=stream).to(device) for channels in (3, 1))
    settings = train_objects.PRESETS["objects64"]["patches"]
    make = one_by_one if looped else losses.texture_grids
    return Side(lambda n: [make(images, masks, stream, **settings) for _ in range(n)], batch)


def one_by_one(images, masks, stream, patch, best, grid, side):
    """losses.texture_grids with loops over images and patches."""
    fit = lambda x, size: torch.nn.functional.interpolate(x, size, mode="bicubic", align_corners=False)
    small, dense, made = fit(images, (side, side)), fit(masks, (side, side)), []
    for image, mask in zip(small, dense, strict=True):
        density = torch.nn.functional.avg_pool2d(mask[None], patch, 1).flatten()
        places = density.topk(best).indices[torch.randint(best, (grid * grid,), generator=stream)].tolist()
        cut = [image[:, at // (side - patch + 1):, at % (side - patch + 1):][:, :patch, :patch] for at in places]
        rows = [torch.cat(cut[k:k + grid], 2) for k in range(0, grid * grid, grid)]
        made.append(torch.cat(rows, 1))
    return fit(torch.stack(made), images.shape[2:])


def cases(config, saliency, batch, seed, device, tries_compile):
    """{what: (against what, our Side, the other Side)}; a Side is made when it is asked for."""
    networks = lambda dtype: functools.partial(experiment.autocast, device, dtype)
    plain, half = networks(torch.float32), networks(torch.bfloat16)
    model = functools.partial(model_of, config, saliency, seed, device)
    train = lambda context, compiled=False, **how: training(model(**how), batch, context, device, seed, compiled)
    make = lambda context, **how: generation(model(**how), batch, context, seed)
    grids = functools.partial(patches, biggan.CONFIGS[config].resolution, batch, seed, device)
    found = {
        "texture patches": ("image after image", lambda: grids(looped=False), lambda: grids(looped=True)),
        "channels-last, training": ("without", lambda: train(plain), lambda: train(plain, channels_last=False)),
        "channels-last, generation": ("without", lambda: make(plain), lambda: make(plain, channels_last=False)),
    }  # fmt: skip
    if experiment.precise(device, "auto") == torch.bfloat16:  # elsewhere it is only emulated
        found |= {"bfloat16, training": ("float32", lambda: train(half), lambda: train(plain)),
                  "bfloat16, generation": ("float32", lambda: make(half), lambda: make(plain))}
    if tries_compile:
        found["torch.compile, training"] = ("without", lambda: train(half, True), lambda: train(half))
    return found


def operations(side):
    """Floating-point operations of one repetition of a Side, as torch counts them: products and sums of matrices."""
    with FlopCounterMode(display=False) as counter:
        side.run(1)
    return counter.get_total_flops()


def matrix_rate(device, dtype, repeats):
    """Floating-point operations a second in the product of two large matrices, the median of `repeats` runs."""
    n = SIDE_OF_PRODUCT.get(device.type, SIDE_OF_PRODUCT["cpu"])
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    product = Side(lambda times: [a @ b for _ in range(times)], 1)
    product.run(2)
    return 2 * n**3 * statistics.median(per_second(product, 4, device) for _ in range(repeats))


def main(config, u2net, batch, repeats, steps, compile, seed, device, results):
    device = experiment.pick_device(device)
    storage.one_of(biggan.CONFIGS, "BigGAN", config)
    options = {"config": config, "u2net": u2net, "batch": batch, "repeats": repeats, "steps": steps}
    tries, lines = device.type == "cuda" if compile is None else compile, []
    rate_in = functools.cache(lambda dtype: matrix_rate(device, dtype, repeats))
    for name, (against, ours, other) in cases(config, u2net, batch, seed, device, tries).items():
        mine, records = ours(), storage.Records(results, "cgn.bench_objects", options | {"baseline": against}, device)
        ratio, here, there = compare(mine, other(), steps, repeats, device)
        found = {"speedup": ratio, "images_a_second": here, "baseline_images_a_second": there}
        if not name.startswith("texture"):
            dtype = torch.float32 if name.startswith("channels") else torch.bfloat16
            rate = operations(mine) * here / batch
            found |= {"operations_a_second": rate, "share_of_matrix_rate": rate / rate_in(dtype)}
        for metric, value in found.items():
            records.add(f"objects, {name}", config, metric, value, steps * batch, seed)
        records.save()
        lines.append([name, against, f"{ratio:.2f}", f"{here:,.1f}", f"{there:,.1f}",
                      f"{100 * found['share_of_matrix_rate']:.0f} %" if "share_of_matrix_rate" in found else "–"])
    print(tables.markdown(["what", "against", "times faster", "images a second", "without", "of the matrix rate"],
                          lines))


if __name__ == "__main__":
    experiment.run(main)
