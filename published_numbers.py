"""The published numbers that no other table of README shows, each beside what was measured here, or why nothing was.

    table(ablation, finetuning, cgn)     Markdown, from the records of parts 1, 3 and 5

The tables of the parts hold the numbers that are comparable with ours line by line. What is left is here, so that a
reader who misses a number finds it: results of other methods than ours, of data that could not be had, of a second run.
Numbers without a source named in their row are from the papers, their code's logs, and the replication of 2022.
"""

import tables
from cgn import report as cgn_report
from cgn.report import TEXTURES

NO_ENSEMBLE = "not measured: it takes an ensemble of diffusion models for each"
NO_IMAGENET = "not measured: needs ImageNet, its sets and weights"
NO_TABLES = "its tables could not be had; ours stand above"

# Dai and Gifford 2024, their site: geometric mean of the counterfactual radius of 100 samples (50 at 8,192, 6 of
# CIFAR-10 with 50,000), images brought to 256 x 256 x 3: {data: {units that can be left out: radius}}
RADII = {
    "MNIST": {256: 103.6, 512: 100.6, 1024: 87.0, 2048: 65.6, 4096: 56.9, 8192: 58.3},
    "Fashion-MNIST": {256: 82.1, 512: 68.2, 1024: 63.8, 2048: 60.7, 4096: 67.0, 8192: 62.3},
    "CIFAR-10": {500: 91.5, 50000: 21.9},
    "CIFAR-100": {500: 92.1, 50000: 36.5},
    "CelebA, people": {"512 of 15,363 images": 36.8, "512 of 15,365": 42.2, "8,192 of 162,770": 33.8,
                       "8,192, a second model": 26.7},
    "MetFaces": {"744 of 1,336 images": 62.2},
    "ArtBench": {"946 of 6,414 images": 29.1, "2,108 of 50,000": 34.1},
}  # fmt: skip
ROOT_OF_PIXELS = 28  # root mean square over a digit's pixels times this is the Euclidean distance

# Constructive Counterfactuals, FID (test digits, zeros) by torcheval, two runs with 512 zeros; 2,048 zeros by the share
# that is kept, FID of zeros (targeted, random)
FIDS = {"before": ("49.5, 90.5", "50.4, 88.8"), "targeted": ("46.1, 41.0", "50.0, 40.3"),
        "random": ("–", "49.1, 43.7"), "full": ("48.4, 40.0", "50.0, 38.2")}  # fmt: skip
SHARES = {0.01: (61.1, 56.2), 0.05: (41.2, 40.8), 0.1: (32.1, 35.5), 0.25: (26.4, 27.0), 0.5: (25.7, 26.1),
          0.75: (25.6, 26.7), 0.99: (26.9, 27.0)}  # fmt: skip

# The replication's accuracies in per cent on colored, double-colored, wildlife: its repository's files, and the mean
# and spread over five runs of a CGN
CACHES = {("original",): (38.13, 10.44, 10.69), ("gan",): (31.33, 10.14, 11.00), ("cgn",): (93.06, 86.61, 81.07),
          ("original", "gan"): (39.47, 10.50, 10.86), ("original", "cgn"): (95.53, 85.25, 65.60)}  # fmt: skip
FIVE = ("92.93 ± 0.44", "86.63 ± 0.24", "81.39 ± 0.44")
CAMS = {"means": (".437 → .454", ".374 → .426", ".388 → .442"),
        "over five runs": (".439 → .456 ± .004", ".365 → .432 ± .005", ".396 → .443 ± .004")}  # fmt: skip


def table(ablation, finetuning, cgn):
    """Every row, as Markdown; the lists are the records of part 1's, part 3's and part 5's scripts."""
    rows = [*of_part_1(ablation), *of_part_3(finetuning), *of_part_4(), *of_digits(cgn), *of_imagenet(), *of_part_6()]
    return tables.markdown(["part", "what", "published", "replication", "ours"], rows)


def of_part_1(records):
    main = [row for row in records if row["setting"].keys() == {"sample"}]
    loss = lambda arm: tables.mean(main, key="sample", arm=arm, split="ablated sample", metric="vae_loss")
    moved = tables.mean_of(ROOT_OF_PIXELS * value for value in tables.values(
        records, key="retrained", arm="retrained", split="ablated sample", metric="displacement").values())
    radii = [["1", f"counterfactual radius, {name}, leaving out one of {', '.join(map(str, found))}",
              ", ".join(map(str, found.values())), "–", NO_ENSEMBLE] for name, found in RADII.items()]
    return [
        ["1", "VAE loss of the sample, before and after its ablation", "6,377 → 34,779, one sample", "–",
         f"{loss('before'):.1f} → {loss('ablated'):.1f} nats"],
        *radii,
        ["1", "log10 of the radius by N, all of these", "2.46 - 0.20 log10 N (r = -0.894)", "–", NO_ENSEMBLE],
        ["1", "radius of sample 0, MNIST of 256, 28 x 28 pixels in [0, 1]", "10.0", "–",
         f"one retraining without the sample moves its reconstruction by {moved:.2f}, which is no maximum"],
        ["1", "false attributions, MNIST of 256", "about 0", "–", NO_ENSEMBLE],
        ["1", "samples that no unit explains (radius 0)", "some; their number could not be had", "–", NO_ENSEMBLE],
    ]  # fmt: skip


def of_part_3(records):
    distance = lambda arm, split, **point: tables.mean(
        [row for row in records if row["setting"] in (point, {})], arm=arm, split=split, metric="frechet")
    whole = [row for row in records if row["setting"] == {"size": 2048}]
    value = lambda metric, split: tables.mean(whole, arm="full", split=split, metric=metric)
    rows = [["3", f"FID of reconstructions, test digits and zeros, {arm}, 512 zeros", "; ".join(fids), "–",
             f"Fréchet, other features: {distance(arm, 'others', size=512):.1f}; "
             f"{distance(arm, 'new digit', size=512):.1f}"] for arm, fids in FIDS.items()]
    measured = {row["setting"]["fraction"] for row in records if row["setting"].get("size") == 2048
                and "fraction" in row["setting"]}  # fmt: skip
    for share, (targeted, random) in SHARES.items():
        ours = [f"{distance(arm, 'new digit', size=2048, fraction=share):.2f}" for arm in ("targeted", "random")
                ] if share in measured else None  # fmt: skip
        rows.append(["3", f"FID of zeros, {share:.0%} of 2,048 kept, targeted and random", f"{targeted}; {random}", "–",
                     "Fréchet, other features: " + "; ".join(ours) if ours else "not measured at this share"])
    return [*rows,
            ["3", "shares of 99 at which the targeted FID of zeros is lower; MSE higher", "85 (by 1.25); 73 (by 8e-5)",
             "–", lower(records, sorted(measured))],
            ["3", "all 2,048 zeros: FID of test digits, of zeros; MSE", "26.7, 27.1; 0.01536, 0.01127", "–",
             "Fréchet {:.1f}, {:.2f}; MSE {:.5f}, {:.5f}".format(*(
                 value(metric, split).mean for metric in ("frechet", "mse_sampled")
                 for split in ("others", "new digit")))],
            ["3", "a first run: MSE of test digits, zeros, before; targeted (302 kept)",
             "0.02235, 0.04056; 0.02224, 0.02072", "–", "the table of part 3"],
            ["3", "a second run: MSE of test digits, zeros, before", "0.02268, 0.03998", "–", "the table of part 3"]]


def lower(records, shares):
    """At how many shares of 2,048 new digits the targeted choice has the lower distance, and the higher error."""
    of = lambda arm, metric, share: tables.mean(records, arm=arm, split="new digit", metric=metric, size=2048,
                                                fraction=share).mean
    fewer = sum(of("targeted", "frechet", share) < of("random", "frechet", share) for share in shares)
    more = sum(of("targeted", "mse_sampled", share) > of("random", "mse_sampled", share) for share in shares)
    return f"of {len(shares)} shares, {fewer}; {more}"


def of_part_4():
    return [["4", "nearest neighbours, other classifiers, oracle, IM1, IM2 of MNIST, CelebA, CheXpert, Mall", "–", "–",
             f"Diffeomorphic Counterfactuals: {NO_TABLES}, on the sets that are here"]]


def of_digits(records):
    return [*accuracies(records), *masks(records), *cams(records),
            ["5", "accuracy, IRM and LNTL", "these rows could not be had", "–", "not measured"],
            ["5", "wildlife by the shipped configuration, reported in issue 3 of its code", "about 76", "–",
             percents(records, ("cgn",), "wildlife")],
            ["5", "t-SNE: clusters of 3, 5 and 8 side by side", "–", "claimed", "neighbours were counted instead"],
            ["5", "minutes to make the table of the MNIST variants", "–", "20 to 25, one GPU",
             "beside the commands of part 5"]]  # fmt: skip


def percents(records, arm, variant):
    values = cgn_report.cell(records, arm, "test", variant, TEXTURES[variant])
    return cgn_report.percent(values)


def accuracies(records):
    """Rows of accuracies on the three variants, and by the size of the set."""
    ours = lambda arm: ", ".join(percents(records, arm, variant) for variant in TEXTURES)
    rows = [["5", f"accuracy, {cgn_report.ARMS[arm]}: colored, double-colored, wildlife", "–",
             "its files: " + ", ".join(f"{value:.2f}" for value in values), ours(arm)]
            for arm, values in CACHES.items()]
    rows.append(["5", "accuracy, CGN, five runs: colored, double-colored, wildlife", "–", ", ".join(FIVE),
                 ours(("cgn",))])
    return [*rows, ["5", "best of wildlife by size and ratio (20 of each shape)", "–", "84.9", ours_best(records)]]


def ours_best(records):
    found = cgn_report.by_size(records, "wildlife")
    best = max(found.values(), key=lambda seeds: tables.mean_of(seeds.values()).mean, default={})
    return cgn_report.percent(best.values()) + ", by size alone"


def masks(records):
    """Rows of the number of classes with a good mask."""
    found = cgn_report.by_training(records)
    of = lambda variant, what: cgn_report.shown(
        found.get((variant, None, what), {}).get("good masks", {}).values(), digits=1)
    return [["5", "good masks of 10, colored, stock training", "–", "5.6 in 47 runs, 10 in none",
             f"colored, {of('colored', 'all losses')}; double-colored, one adversary, "
             f"{of('double_colored', 'one adversary on images')}"],
            ["5", "good masks of 10, colored, with an edge loss of 0.1", "–",
             "20 runs: 10 in 7 and 9 in 7 (another file: 10 in 15); accuracy 73.3 to 93.9",
             f"double-colored, one adversary, edge 10: {of('double_colored', 'one adversary on images, edge 10')}"]]


def cams(records):
    """Rows of GradCAM's overlap, originals and counterfactuals."""
    overlap = lambda arm, variant: cgn_report.shown({
        row["seed"]: row["value"] for row in records if (row["experiment"], row["arm"], row["metric"]) == (
            "explain", arm, "iou_both") and row["options"]["variant"] == variant
        and row["options"]["textures"] == TEXTURES[variant]}.values())
    ours = "; ".join(f"{overlap('original', variant)} → {overlap('abducted', variant)}" for variant in TEXTURES)
    return [["5", f"GradCAM, IoU of fore- and background, {what}: colored; the others against other digits' masks", "–",
             "; ".join(values), f"own masks: {ours}"] for what, values in CAMS.items()]


def of_imagenet():
    rows = [
        ["shape bias of IN and SIN", "these rows could not be had", "–"],
        ["shape bias, shape's head, IN + CGN", "54.8", "a slide has 57.6 for the paper's"],
        ["slides, IN-mini + CGN: shape bias of shape, texture, background; top-1, top-5", "–",
         "58.8, 22.6, 24.7; 56.5, 79.3"],
        ["slides: IN-9, mixed-same, mixed-rand, gap (75.4 - 66.7 is 8.7: it mixes heads)", "–",
         "89.4, 75.4, 66.7, 5.0"],
        ["IN-9 with the right number of images (4,050 in the place of 4,064)", "–", "86.8 → 87.1"],
        ["IN-9, mixed-same, mixed-rand, gap, VGG16-BN (Xiao et al.)", "94.3, 83.6, 73.4, 10.2", "–"],
        ["the same, ResNet-152", "96.7, 89.3, 83.5, 5.8", "–"],
        ["the same, ResNet-50 trained on IN-9L", "96.4, 89.8, 75.6, 14.2", "–"],
        ["Inception Score, mean mask of the replication's files, without shape, texture, background, reconstruction",
         "–", "109.7, .26; 187.1, .41; 210.3, .06; 17.2, .35"],
        ["ImageNet-A of ResNet-50: that number is of CutMix's", "–", "3.4"],
    ]
    hours = [["5", "hours of a GPU", "a CGN, below 12", "112 and 48; set 3.5, classifier 2",
              "none; of a core, beside the commands of part 5"]]  # fmt: skip
    return [["5", what, paper, replication, NO_IMAGENET] for what, paper, replication in rows] + hours


def of_part_6():
    return [["6", "accuracies of Robust Classification on IN-9, IN-9L, Waterbirds, CCT", "–", "–", NO_TABLES],
            ["6", "no gain on ImageNet-A, ObjectNet, other views of X-rays", "claimed, without numbers here", "–",
             "not measured: these sets could not be had"],
            ["6", "right for the right reasons (gradient of the summed log-probabilities) does poorly", "claimed", "–",
             "the table of part 6 has the log-probability of the label"]]
