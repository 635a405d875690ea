"""Part 2: steps of equal length, and what is measured of them."""

import pytest
import torch

import ablate
import constructive_counterfactuals as cc
import datasets
import experiment
import metrics
import storage
import tables


@pytest.fixture(scope="module")
def bench(test_digits):
    model, _, _ = cc.train.load_vae("runs/vae_512_no0", None, "cpu")
    return model, cc.Bench(model, test_digits, digit=0, others=40)


def difference(a, b):
    return {name: value - dict(b.named_parameters())[name] for name, value in a.named_parameters()}


def test_the_three_steps_have_the_same_length(model, images):
    moved = cc.steps(model, images[:2], 0.003, experiment.generator(0, "s"))
    with torch.no_grad():
        lengths = {arm: float(ablate.norm(difference(net, model))) for arm, net in moved.items()}
    assert list(lengths) == list(cc.ARMS)
    assert lengths["gradient step"] == pytest.approx(lengths["sign step"], rel=1e-3)
    assert lengths["random step"] == pytest.approx(lengths["sign step"], rel=1e-3)
    assert 0 < lengths["sign step"] <= 0.003 * 990_633**0.5 * 1.001


def test_directions(model, images):
    grads = ablate.error_gradients(model, images[:1])
    moved = cc.steps(model, images[:1], 0.01, experiment.generator(0, "s"))
    sign = difference(model, moved["sign step"])["fc_mu.weight"]
    assert torch.allclose(sign, 0.01 * grads["fc_mu.weight"].sign(), atol=1e-6)
    gradient = difference(model, moved["gradient step"])["fc_mu.weight"]
    assert torch.cosine_similarity(gradient.flatten(), grads["fc_mu.weight"].flatten(), 0) > 0.999
    random = difference(model, moved["random step"])
    assert torch.equal(random["fc_mu.weight"].abs() > 1e-6, grads["fc_mu.weight"] != 0)
    assert (random["encoder.7.weight"].sign() * grads["encoder.7.weight"].sign()).mean().abs() < 0.02
    assert float(random["fc_logvar.weight"].abs().max()) == 0  # no gradient there at the latent mean


def test_changes_are_measured_apart_on_anchor_unseen_and_known(bench):
    model, rig = bench
    assert (len(rig.unseen), len(rig.known)) == (980, 40)
    assert not datasets.of_class(rig.known, 0).any()
    assert all(value == (0.0, n) for (split, _), value in rig.change(model, torch.tensor([3])).items()
               for n in [{"anchor": 1, "unseen": 979, "known": 40}[split]])
    after = ablate.reverse_ablate(model, rig.unseen.images[3:4], 0.0002)
    change = rig.change(after, torch.tensor([3]))
    gap = metrics.squared_errors(after, rig.images) - metrics.squared_errors(model, rig.images)
    assert change["anchor", "mse"][0] == pytest.approx(float(gap[3]), rel=1e-5)
    assert change["unseen", "mse"][0] == pytest.approx(float((gap[:980].sum() - gap[3]) / 979), rel=1e-3)
    assert change["known", "mse"][0] == pytest.approx(float(gap[980:].mean()), rel=1e-4)


def test_a_gentle_step_teaches_the_anchor_and_other_unseen_digits(bench):
    """The claim of the part, on twelve anchors that are none of those the strength was looked up with."""
    model, rig = bench
    anchors = range(500, 512)
    changes = [rig.change(ablate.reverse_ablate(model, rig.unseen.images[i : i + 1], 0.0002), torch.tensor([i]))
               for i in anchors]
    for split in ("anchor", "unseen"):
        mean = tables.mean_of(change[split, "mse"][0] for change in changes)
        assert tables.verdict(mean) == "lower", split


def test_the_script_records_everything_and_leaves_the_run_alone(tmp_path, call):
    checkpoint = cc.Path("runs/vae_512_no0/ckpt/best.pt").read_bytes()
    words = "--anchors 2 --seeds 2 --sweep-anchors 1 --others 20 --strengths 0.0001 0.001 --several 1 3"
    code, out, _ = call("constructive_counterfactuals", *words.split(), "--results", tmp_path)
    assert code == 0
    assert "strength 0.0002" in out
    rows = storage.read_lines(tmp_path / "metrics.jsonl")
    main = [row for row in rows if row["setting"].keys() == {"strength"}]
    assert len(main) == 2 * 2 * 3 * 3 * 2  # seeds x strengths x arms x splits x metrics
    assert {row["seed"] for row in main} == {0, 1}
    assert {row["setting"]["anchors"] for row in rows if "anchors" in row["setting"]} == {1, 3}
    for name in ("constructive_counterfactuals.png", "strength.png", "anchors.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    assert cc.Path("runs/vae_512_no0/ckpt/best.pt").read_bytes() == checkpoint


# --- the report -----------------------------------------------------------------------------------------


def made_up(unseen=-0.25, known=0.5, run="a", seeds=(-1, 1), strength=(0.5,)):
    """Records of two seeds that lie 0.02 apart, so that the 95 % interval is 12.706 x 0.01 = 0.1271."""
    options = {"seeds": len(seeds), "anchors": 3, "digit": 0, "others": 7, "strength": list(strength), "run": run}
    record = lambda arm, split, metric, value, seed, **setting: {
        "arm": arm, "split": split, "metric": metric, "value": value, "seed": seed, "setting": setting,
        "options": options}  # fmt: skip
    rows = [record("before", split, "mse", value, 0) for split, value in (("unseen", 0.03), ("known", 0.02))]
    for arm, share in zip(cc.ARMS, (1, 2, 0), strict=True):
        for split, change in zip(cc.SPLITS, (-1, unseen, known), strict=True):
            for seed in seeds:
                for s in strength:
                    value = share * (change + 0.01 * seed)
                    rows.append(record(arm, split, "mse_change", value, seed, strength=s))
                    rows.append(record(arm, split, "vae_loss_change", 100 * value, seed, strength=s))
    return rows


def test_the_table_says_what_the_records_say():
    lines = cc.table(made_up()).splitlines()
    assert lines[2:5] == [
        "| the added sample; strength 0.5 | -1.0000 ± 0.1271 | -2.0000 ± 0.2541 | +0.0000 ± 0.0000 | -100.00 ± 12.71 |",
        "| other 0s, never shown; strength 0.5 | -0.2500 ± 0.1271 | -0.5000 ± 0.2541 | +0.0000 ± 0.0000 | "
        "-25.00 ± 12.71 |",
        "| known digits; strength 0.5 | +0.5000 ± 0.1271 | +1.0000 ± 0.2541 | +0.0000 ± 0.0000 | +50.00 ± 12.71 |"]
    assert "over 2 seeds of 3 anchors each" in lines[6]
    assert lines[6].endswith("Before: MSE 0.0300 on 0s, 0.0200 on 7 known test digits.")


def test_published_changes_stand_beside_ours():
    lines = cc.published_table(made_up()).splitlines()
    assert lines[2:] == ["| the added sample | -10.28 | -100.00 ± 12.71 |",
                         "| a digit the model knows | +0.37 | +50.00 ± 12.71 |"]  # fmt: skip


@pytest.mark.parametrize(("unseen", "known", "teaches", "spares"), [
    (-0.25, -0.5, "holds", "holds"), (0.25, 0.5, "does not hold", "does not hold"),
    (-0.1, 0.1, "is not decided", "is not contradicted")])  # fmt: skip
def test_claims_follow_the_records(unseen, known, teaches, spares):
    assert cc.claims(made_up(unseen, known)) == (
        "- That one step of 0.5 from one sample teaches others of its class, never shown, "
        f"{teaches} (MSE {unseen:+.4f} ± 0.1271).\n- That a step of 0.5 does not degrade the digits the model knows "
        f"{spares} (MSE {known:+.4f} ± 0.1271).")


def test_models_are_the_repetitions_of_their_sentence():
    """Unseen digits change by -0.25 and -0.27, known ones by 0.5 in both models."""
    text = cc.models_sentence(made_up(run="a") + made_up(-0.27, run="b"))
    assert text == ("Over 2 models trained from seeds of their own (mean and 95 % interval over the models, at least 6 "
                    "anchors each): at 0.5 the MSE changes by -0.2600 ± 0.1271 on unseen digits and +0.5000 ± 0.0000 "
                    "on known ones.")
