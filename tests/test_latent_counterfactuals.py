"""The script: one image, many images, the toy, and every mistake in one line."""

import pytest
import torch
from conftest import PUBLISHED
from PIL import Image

import figures
import helix
import latent_counterfactuals
import storage

FEW = ("--steps", 40, "--lr", 0.05)


def values(folder):
    return {(row["arm"], row["metric"]): row["value"] for row in storage.read_lines(folder / "metrics.jsonl")}


def test_one_test_image(tmp_path, call):
    code, out, _ = call("latent_counterfactuals", "--model", "image_vae", "--index", 3, "--target", 6, *FEW,
                        "--results", tmp_path)  # fmt: skip
    assert code == 0
    assert "class 6" in out
    assert {file.name for file in tmp_path.iterdir()} == {
        "overview_mnist_image_vae_test_image_3.png", "path_mnist_image_vae_test_image_3.gif", "metrics.jsonl"}
    with Image.open(tmp_path / "path_mnist_image_vae_test_image_3.gif") as film:
        assert film.n_frames > 5
    found = values(tmp_path)
    assert 0 < found["image_vae", "steps"] <= 40
    assert 0 < found["image_vae", "confidence or count"] <= 1


def test_all_targets_of_one_image_are_drawn(tmp_path, call):
    code, *_ = call("latent_counterfactuals", "--model", "image_vae", "--steps", 5, "--results", tmp_path)
    assert code == 0
    assert (tmp_path / "targets_mnist_image_vae_test_image_0.png").stat().st_size > 20_000


@pytest.mark.parametrize("mode", ["RGBA", "L"])
def test_an_image_file_of_any_mode_and_size(mode, tmp_path, call):
    Image.new(mode, (90, 70), "white").save(tmp_path / "x.png")
    code, out, _ = call("latent_counterfactuals", "--space", "pixel", "--image", tmp_path / "x.png", *FEW,
                        "--results", tmp_path / "r")  # fmt: skip
    assert code == 0
    assert f"x.png: {mode} 90 x 70, taken as L 28 x 28" in out
    assert (tmp_path / "r/overview_mnist_pixel_x.png").is_file()


def test_an_image_is_turned_as_its_camera_was_held(tmp_path):
    picture, exif = Image.new("L", (28, 28)), Image.Exif()
    picture.paste(255, (0, 0, 28, 14))
    exif[0x0112] = 3  # upside down
    picture.save(tmp_path / "x.png", exif=exif)
    x, _, _ = latent_counterfactuals.one_image("mnist", tmp_path / "x.png", 0, {}, "cpu")
    assert (x[0, 0, :14].max(), x[0, 0, 14:].min()) == (0, 1)


def test_an_unreachable_target_is_a_result(tmp_path, call):
    code, out, _ = call("latent_counterfactuals", "--model", "image_vae", "--steps", 0, "--target", 9,
                        "--results", tmp_path)  # fmt: skip
    assert code == 0
    assert "NOT reached" in out


def test_counting_goes_up_and_down_in_pixels(tmp_path, call):
    for way, words in (("--maximize", "or more"), ("--minimize", "or less")):
        code, out, _ = call("latent_counterfactuals", "--dataset", "crowds", "--space", "pixel", way, "--index", 1,
                            "--steps", 3, "--results", tmp_path)  # fmt: skip
        assert code == 0
        assert words in out


@pytest.mark.slow
def test_many_images_are_measured_with_the_pixel_attack_beside(tmp_path, call):
    words = ("latent_counterfactuals", "--model", "image_vae", "--count", 70, "--steps", 60, "--lr", 0.05,
             "--results", tmp_path)  # fmt: skip
    code, out, _ = call(*words)
    assert code == 0
    found = values(tmp_path)
    metrics = {metric for arm, metric in found if arm == "image_vae"}
    assert {"validity", "oracle", "oracle_confidence", "neighbours", "im1", "im2", "fid", "l1", "l2", "latent",
            "reconstruction", "seconds", "oracle half", "oracle minus pixel", "im1 minus pixel half"} <= metrics
    assert {row["n"] for row in storage.read_lines(tmp_path / "metrics.jsonl")} == {70}
    assert found["real", "oracle"] > 0.95  # real images are what they are
    assert found["real", "im1"] < found["pixel", "im1"]
    difference = found["image_vae", "oracle"] - found["pixel", "oracle"]
    assert found["image_vae", "oracle minus pixel"] == pytest.approx(difference, abs=1e-6)
    assert "| mean over 70 images | image_vae | pixel | real |" in out
    before = (tmp_path / "metrics.jsonl").read_text().count("\n")
    call(*words)
    again = values(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == before
    assert all(again[key] == found[key] for key in found if key[1] != "seconds")


@pytest.mark.parametrize(("words", "says"), [
    ("--dataset cifar", "there are mnist, strokes, crowds, celeba, chexpert, mall, helix"),
    ("--model nosuch", "no generative model is called 'nosuch'; there are vae, linear_vae"),
    ("--target 12", "mnist has no class '12'; there are 0, 1"),
    ("--target 7", "the classifier sees 7 in this image already"),
    ("--image README.md", "README.md is not an image that can be read"),
    ("--image nosuch.png", "no image at nosuch.png"),
    ("--run runs/vae_512_no0", "runs/vae_512_no0 holds vae trained on mnist, and image_vae trained on mnist is needed"),
    ("--run runs/nosuch", "python train.py --model image_vae --data mnist makes one"),
    ("--classifier runs/attribute_cnn_strokes", "attribute_cnn trained on strokes, and mnist_cnn trained on mnist"),
    ("--index 10000", "the test split of mnist has 10000 images"),
    ("--maximize", "mnist has classes, it is not counted"),
    ("--count 5 --maximize", "mnist has classes, it is not counted"),
    ("--stop-at 1.5", "a confidence lies between 0 and 1"),
    ("--count 20000", "10000 test images of mnist can be taken"),
    ("--count 5 --image x.png", "leave out one of them"),
    ("--count 5 --index 3", "--index has no part where --count draws the images: leave it out"),
    ("--dataset helix --model glow", "--model has no part on the helix: leave it out"),
    ("--dataset crowds --space pixel --target 3", "say --maximize or --minimize"),
    ("--dataset crowds --space pixel --maximize --minimize", "exclude each other"),
    ("--dataset strokes --space pixel --target fat", "there are thin, thick"),
])  # fmt: skip
def test_a_mistake_is_one_line(words, says, tmp_path, call):
    model = () if "crowds" in words or "strokes" in words or "--model" in words else ("--model", "image_vae")
    code, _, err = call("latent_counterfactuals", *model, *words.split(), "--results", tmp_path)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text()


def test_heat_maps_sum_over_channels_and_survive_no_change():
    a = torch.zeros(1, 3, 2, 2)
    b = a.clone()
    b[0, :, 0, 0] = torch.tensor([0.1, -0.2, 0.3])
    assert figures.change_map(b, a)[0, 0].flatten().tolist() == pytest.approx([0.6, 0, 0, 0])


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the published images are not here")
def test_the_published_image(tmp_path, call):
    image = PUBLISHED / "images/MNIST_img_1.png"
    code, out, _ = call("latent_counterfactuals", "--model", "image_vae", "--image", image, "--target", 9,
                        "--results", tmp_path)  # fmt: skip
    assert code == 0
    assert "class 9 | reached" in out


# --- the toy -----------------------------------------------------------------------------------------


def test_distance_to_the_helix():
    t = torch.linspace(-3, 3, 7)
    x = helix.points(t)
    assert helix.distance(x).max() < 5e-4
    outwards = x.clone()
    outwards[:, :2] *= 1.2
    assert helix.distance(outwards).tolist() == pytest.approx([0.2] * 7, abs=2e-3)


def test_the_flow_of_points_is_a_bijection_with_the_right_determinant():
    torch.manual_seed(0)
    flow = helix.PointFlow().double()
    for parameter in flow.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    x = helix.points(torch.linspace(-3, 3, 5)).double()
    z, density = flow.log_density(x)
    assert (flow.decode(z) - x).abs().max() < 1e-9
    jacobian = torch.autograd.functional.jacobian(lambda p: flow.encode(p.view(1, 3))[0], x[2])
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z[2]).sum()
    assert density[2].item() == pytest.approx((normal + torch.linalg.slogdet(jacobian)[1]).item(), abs=1e-9)


def test_attacks_stop_at_the_confidence_and_failures_are_reported():
    classifier = lambda x: 4 * x[:, 2]
    start = torch.tensor([[0.0, 1.0, -1.0], [0.0, 1.0, 1.0]])
    moved, there = helix.attack(start, lambda z: z, classifier, torch.tensor([1.0, 0.0]))
    assert there.all()
    assert torch.sigmoid(classifier(moved)).tolist() == pytest.approx([0.9, 0.1], abs=0.02)
    _, there = helix.attack(start, lambda z: z, lambda x: 0 * x[:, 2], torch.tensor([1.0, 0.0]))
    assert not there.any()
