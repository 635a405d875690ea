"""What a CGN of objects is worth: every measure by hand, what is recorded, what is left out, what is refused."""

import json

import pytest
import torch
import torchvision
from torch import nn

import experiment
import storage
from cgn import biggan, ensemble, objects, score_objects, scores, u2net
from cgn.mechanisms import Parts
from experiment import UserError

TINY = biggan.Config(64, 10, 8, 8, ((True, 4, 4), (True, 4, 2), (True, 2, 2)), attention=1, fold=2)
CPU = torch.device("cpu")
READS = {"shape read", "texture read", "background read"}
OF_CGN = {"mean mask", "binary", "l1 to target", "mask iou", "mask iou, composite", "inception score",
          "inception score deviation"} | READS  # fmt: skip
OF_TARGET = {"inception score", "inception score deviation"} | READS


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(biggan.CONFIGS, "tiny", TINY)


def made(function, seed):
    with experiment.seeded(seed, "tests"):
        return function()


def checkpoint(path, name, settings, weights, options=None):
    storage.save_checkpoint(path / "ckpt/best.pt", {"architecture": {"name": name, "settings": settings}, "options":
                                                    options or {}, "model": weights})  # fmt: skip
    return path


def a_classifier(path, seed, classes=10):
    model = ensemble.build("small", classes, 64, seed)
    return checkpoint(path, "ensemble", model.settings, model.state_dict())


@pytest.fixture(scope="module")
def model():
    """A CGN whose mechanisms are copies of its target."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(biggan.CONFIGS, "tiny", TINY)
        generator, saliency = made(lambda: biggan.build("tiny"), 0), made(lambda: u2net.build("u2net64"), 0)
        biggan.measure_statistics(generator, experiment.generator(0, "statistics"), n=32)
        return objects.ObjectsCGN("tiny", "u2net64", target=True).start_from(generator, saliency)


def bare(model):
    return {key: value for key, value in model.state_dict().items() if not key.startswith(objects.TARGET)}


@pytest.fixture
def networks(model, tmp_path):
    """{option: run folder} of everything that a measurement takes."""
    return {"run": checkpoint(tmp_path / "cgn_tiny", "objects", model.settings, bare(model)),
            "target": checkpoint(tmp_path / "biggan", "biggan", {"config": "tiny"}, model.biggan_GT.state_dict()),
            "classifier": a_classifier(tmp_path / "real", 1), "reader": a_classifier(tmp_path / "independent", 2),
            "segmenter": checkpoint(tmp_path / "other", "u2net64", {}, made(lambda: u2net.build("u2net64"),
                                                                            1).state_dict())}  # fmt: skip


@pytest.fixture
def score(call, tmp_path):
    """score(networks, *words): (exit code, stdout, stderr) of the script on 12 images."""

    def run(networks, *words):
        given = [word for option, path in networks.items() for word in (f"--{option}", path)]
        return call("cgn.score_objects", *given, "--count", 12, "--device", "cpu", "--precision", "float32",
                    "--results", tmp_path / "results", *words)  # fmt: skip

    return run


def records(tmp_path):
    return storage.read_lines(tmp_path / "results/metrics.jsonl")


def metrics_of(rows, arm):
    return {row["metric"] for row in rows if row["arm"] == arm}


# --- measures by hand ------------------------------------------------------------------------------------


def columns(widths, side=16):
    """Masks (B, 1, side, side) whose first columns are 1, as many as is said."""
    return (torch.arange(side) < widths[:, None]).float().view(-1, 1, 1, side).expand(-1, 1, side, side)


def painted(labels, more=0):
    """Parts in which columns tell the shape's label, colours those of texture and background."""
    shape, texture, background = labels
    flat = lambda values: values.view(-1, 1, 1, 1).expand(-1, 3, 16, 16)
    return Parts(columns(shape + 1 + more), flat(texture / 10), flat(background / 10 - 1))


def told(images):
    """The three labels (B, 3) of images that were painted like that."""
    columns_ = (images[:, 0, 0] >= 0).sum(1) - 1
    return torch.stack([columns_, (images[:, 0, 0, 0] * 10).round(), ((images[:, 0, 0, 15] + 1) * 10).round()],
                       1).long()  # fmt: skip


class Known(nn.Module):
    """A CGN whose parts are painted; notes what it was asked for."""

    resolution, classes = 16, 10

    def __init__(self):
        super().__init__()
        self.anything, self.asked = nn.Parameter(torch.zeros(1)), []

    def draw(self, n, stream, truncation=1.0, device="cpu"):
        return biggan.truncated_noise(n, 4, truncation, stream).to(device), None

    def parts(self, labels, latents, truncation):
        self.asked.append((torch.stack(list(labels), 1), latents))
        return painted(labels)


def test_overlap_at_a_half():
    masks, others = columns(torch.tensor([4, 4, 0, 0, 8])) * 0.6, columns(torch.tensor([4, 8, 0, 3, 4]))
    assert score_objects.overlap(masks, others).tolist() == [1, 0.5, 0, 0, 0.5]
    assert score_objects.overlap(masks * 0.5, others).tolist() == [0] * 5  # 0.3 is no mask


def test_masks_of_a_half_are_undecided():
    masks = torch.stack([torch.full((1, 4, 4), value) for value in (0.5, 0.0, 1.0, 0.25)])
    wanted = [0, 0.99853, 0.99853, 1 - 0.811278]
    assert score_objects.decided(masks).tolist() == pytest.approx(wanted, abs=1e-4)


def test_scores_of_perfect_and_of_clueless_classifiers():
    perfect = torch.eye(10).repeat(4, 1)  # two splits of 20, each class twice in each
    clueless = torch.full((40, 10), 0.1)
    reads = torch.tensor([[True, True, False], [True, False, False]] * 20)
    seen = {("cgn", "probabilities"): perfect, ("target", "probabilities"): clueless, ("cgn", "read"): reads,
            ("cgn", "binary"): torch.tensor([0.5, 1.0])}  # fmt: skip
    rows = score_objects.summed_up(seen, 2)
    found = {(whose, metric): (value, n) for whose, metric, value, n in rows}
    assert found["cgn", "inception score"] == (pytest.approx(10), 20)
    assert found["target", "inception score"] == (pytest.approx(1), 20)
    assert found["cgn", "inception score deviation"] == (pytest.approx(0), 20)
    assert [found["cgn", f"{head} read"] for head in ensemble.HEADS] == [(1, 40), (0.5, 40), (0, 40)]
    assert found["cgn", "binary"] == (0.75, 2)


def test_every_measure_of_painted_parts():
    """The target's object is a column wider; a classifier tells the texture, a segmenter what is no background."""
    model, asked = Known(), []

    def target(latents, labels, truncation):
        asked.append((labels, latents, truncation))
        return painted((labels,) * 3, more=1).image()

    tools = score_objects.Instruments(target, lambda images: torch.eye(10)[told(images)[:, 1]], told,
                                      lambda images: (images[:, :1] >= 0).float())  # fmt: skip
    context = experiment.in_precision(CPU, "float32")
    rows = score_objects.measure(model, tools, 120, 2, 0.5, 0, context)
    found = {(whose, metric): (value, n) for whose, metric, value, n in rows}
    assert {metric for whose, metric in found if whose == "cgn"} == OF_CGN
    assert {metric for whose, metric in found if whose == "target"} == OF_TARGET
    one, three = ([torch.cat(part) for part in zip(*model.asked[k::2], strict=True)] for k in (0, 1))
    labels, latents, truncations = zip(*asked, strict=True)
    assert set(truncations) == {0.5}
    assert torch.equal(torch.cat(labels), one[0][:, 0])
    assert torch.equal(torch.cat(latents), one[1])
    assert (one[0] == one[0][:, :1]).all()
    assert 0 < float((three[0][:, 0] == three[0][:, 1]).float().mean()) < 0.3  # independent: a tenth
    shape = one[0][:, 0].double()
    assert found["cgn", "mean mask"] == (pytest.approx(float((shape + 1).mean() / 16)), 120)
    assert found["cgn", "mask iou"] == (pytest.approx(float(((shape + 1) / (shape + 2)).mean())), 120)
    assert found["cgn", "mask iou, composite"] == (1, 120)
    assert found["cgn", "l1 to target"] == (pytest.approx(1 / 16), 120)  # in that column, object is background + 1
    assert found["cgn", "binary"][0] == pytest.approx(0.99853, abs=1e-4)
    assert [found["cgn", f"{head} read"] for head in ensemble.HEADS] == [(1, 120)] * 3
    assert [found["target", f"{head} read"][0] for head in ensemble.HEADS] == [0, 1, 1]
    halves = [torch.bincount(half, minlength=10).double() / 60 for half in one[0][:, 0].split(60)]
    by_hand = [float((-torch.xlogy(p, p).sum()).exp()) for p in halves]  # of sure answers: exp of the entropy
    assert found["cgn", "inception score"] == (pytest.approx(sum(by_hand) / 2), 60)
    assert found["target", "inception score"] == found["cgn", "inception score"]


def test_a_reader_has_a_head_for_each_label(tmp_path):
    network = ensemble.build("small", 10, 64, 3)
    folder = checkpoint(tmp_path, "ensemble", network.settings, network.state_dict())
    images = torch.rand(5, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        logits = network.eval()(images)
        reading, probabilities = (score_objects.reading_of(folder, 10, CPU)[0],
                                  score_objects.classifier_of(str(folder), None, 10, CPU)[0])  # fmt: skip
        assert torch.equal(reading(images), logits.argmax(2))
        assert torch.allclose(probabilities(images), logits.mean(1).softmax(1), atol=1e-6)


def test_a_classifier_of_torchvision_gets_what_its_weights_expect(tmp_path, monkeypatch):
    network = made(lambda: torchvision.models.resnet18(num_classes=10), 0).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        found = score_objects.classifier_of("resnet18", tmp_path / "w.pth", 10, CPU)[0](images)
        assert torch.equal(found, scores.class_probabilities(network, images, side=224))
    with pytest.raises(UserError, match="resnet18 tells 10 classes apart, and the CGN makes 7"):
        score_objects.classifier_of("resnet18", tmp_path / "w.pth", 7, CPU)
    inception = torchvision.models.inception_v3(num_classes=10, init_weights=False)
    assert not inception.transform_input
    monkeypatch.setattr(storage, "load_checkpoint", lambda path: inception.state_dict())
    function, _ = score_objects.classifier_of("inception_v3", tmp_path / "w.pth", 10, CPU)
    assert function.args[0].transform_input  # it brings ImageNet's mean and deviation back to [-1, 1]
    assert function.keywords == {"side": 299}


# --- the script ------------------------------------------------------------------------------------------


def test_a_run_is_measured_once(score, networks, tmp_path, monkeypatch):
    code, out, error = score(networks)
    assert code == 0, error
    rows = records(tmp_path)
    assert {row["arm"] for row in rows} == {"all losses", "target"}
    assert metrics_of(rows, "all losses") == OF_CGN
    assert metrics_of(rows, "target") == OF_TARGET
    assert {(row["experiment"], row["split"], row["seed"]) for row in rows} == {("score_objects", "tiny", 0)}
    for row in rows:
        assert row["n"] == (6 if row["metric"].startswith("inception") else 12)
        assert f"| {row['metric']} |" in out
    by = {(row["arm"], row["metric"]): row["value"] for row in rows}
    assert by["all losses", "l1 to target"] == 0  # the mechanisms are copies of the target
    assert by["all losses", "inception score"] == by["target", "inception score"]
    assert by["all losses", "mask iou"] == by["all losses", "mask iou, composite"]
    options = rows[0]["options"]
    assert {name: options[name] for name in networks} == {name: path.name for name, path in networks.items()}
    assert options["weights"] == storage.digest(networks["run"] / "ckpt/best.pt")
    for name in ("target", "classifier", "reader", "segmenter"):
        assert options[f"{name}_weights"] == storage.digest(networks[name] / "ckpt/best.pt")
    assert options["trained"] == {}
    assert {name: options[name] for name in ("count", "splits", "truncation", "seed", "precision")} == {
        "count": 12, "splits": 2, "truncation": 0.5, "seed": 0, "precision": "float32"}  # fmt: skip
    written = (tmp_path / "results/metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(score_objects, "measure", None)
        assert score(networks)[:2] == (0, out)
    assert (tmp_path / "results/metrics.jsonl").read_bytes() == written
    assert score(networks, "--seed", 1)[0] == 0
    assert len(records(tmp_path)) == 2 * len(rows)


def test_the_arm_is_named_by_the_loss_that_was_left_out(score, networks, model, tmp_path):
    trained = {"preset": "objects64", "leave_out": "shape", "seed": 3}
    run = checkpoint(tmp_path / "cgn_less", "objects", model.settings, bare(model), trained)
    assert score({**networks, "run": run, "reader": "none"})[0] == 0
    rows = records(tmp_path)
    assert {(row["arm"], row["split"]) for row in rows} == {("without shape", "objects64"), ("target", "objects64")}
    assert json.loads(json.dumps(trained)) == rows[0]["options"]["trained"]


def test_the_published_file_brings_its_target(score, networks, model, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "PUBLISHED", ("tiny", "u2net64"))
    torch.save(model.state_dict(), tmp_path / "cgn.pth")
    networks["run"] = tmp_path / "cgn.pth"
    networks.pop("target")
    assert score(networks)[0] == 0
    rows = records(tmp_path)
    assert {(row["arm"], row["split"]) for row in rows} == {("published", "tiny"), ("target", "tiny")}
    assert rows[0]["options"]["trained"] is None
    assert rows[0]["options"]["target"] == "cgn.pth"
    assert rows[0]["options"]["target_weights"] == rows[0]["options"]["weights"]
    code, out, _ = score(networks, "--target", "none", "--seed", 1)
    assert (code, "comparisons with the target's images are left out" in out) == (0, True)
    rows = [row for row in records(tmp_path) if row["seed"] == 1]
    assert {row["arm"] for row in rows} == {"published"}
    assert metrics_of(rows, "published") == OF_CGN - {"mask iou", "l1 to target"}


def test_the_target_can_be_published_weights(score, networks, model, tmp_path):
    torch.save(model.biggan_GT.state_dict(), tmp_path / "biggan.bin")
    assert score({**networks, "target": tmp_path / "biggan.bin"})[0] == 0
    by = {(row["arm"], row["metric"]): row for row in records(tmp_path)}
    assert by["all losses", "l1 to target"]["value"] == 0
    assert by["target", "inception score"]["options"]["target"] == "biggan.bin"


@pytest.mark.parametrize(("option", "command", "lost", "lost_by_target"), [
    ("classifier", "cgn.train_ensemble --on real", {"inception score", "inception score deviation"},
     {"inception score", "inception score deviation"}),
    ("reader", "cgn.train_ensemble --on independent", READS, READS),
    ("segmenter", "cgn.train_saliency --seed 1", {"mask iou", "mask iou, composite"}, set()),
    ("target", "cgn.train_gan", {"mask iou", "l1 to target"}, OF_TARGET),
])  # fmt: skip
def test_what_was_not_made_yet_is_said_and_left_out(score, networks, tmp_path, monkeypatch, option, command, lost,
                                                    lost_by_target):  # fmt: skip
    absent = tmp_path / "absent"
    monkeypatch.setattr(score_objects, option.upper(), str(absent) if option == "classifier" else absent)
    networks.pop(option)
    code, out, error = score(networks)
    assert code == 0, error
    assert f"no {absent}: " in out
    assert f"python -m {command}" in out
    rows = records(tmp_path)
    assert metrics_of(rows, "all losses") == OF_CGN - lost
    assert metrics_of(rows, "target") == OF_TARGET - lost_by_target
    assert rows[0]["options"][option] is None
    assert rows[0]["options"][f"{option}_weights"] is None


def test_what_cannot_be_measured_is_said_in_a_line(score, networks, model, tmp_path, monkeypatch):
    def refused(message, *words, **other):
        code, _, error = score({**networks, **other}, *words)
        assert (code, error.count("\n")) == (2, 1)
        assert message in error
        assert not (tmp_path / "results/metrics.jsonl").exists()

    refused("no checkpoint at", run=tmp_path / "nowhere")
    refused("no weights at", run=tmp_path / "cgn.pth")
    refused("no checkpoint at", reader=tmp_path / "nowhere")  # named, so it must be there
    refused("is neither a run folder nor", classifier=tmp_path / "nowhere")
    refused("is neither a run folder nor", "--weights", tmp_path / "w.pth", classifier="resnet_of_nobody")
    seven = a_classifier(tmp_path / "seven", 0, classes=7)
    refused("seven tells 7 classes apart, and the CGN makes 10", classifier=seven)
    refused("seven tells 7 classes apart, and the CGN makes 10", reader=seven)
    refused("--count 1: an Inception Score over 2 splits", "--count", 1)
    refused("--weights is for a classifier of torchvision", "--weights", tmp_path / "w.pth")
    refused("the truncation must be from", "--truncation", 2)
    own = checkpoint(tmp_path / "own", "u2net64", {}, model.u2net.state_dict())
    refused("no judge of its masks", segmenter=own)
    monkeypatch.setitem(biggan.CONFIGS, "other", TINY._replace(classes=4))
    other = checkpoint(tmp_path / "four", "biggan", {"config": "other"}, biggan.build("other").state_dict())
    refused("is of classes 4, and the CGN of 10", target=other)
