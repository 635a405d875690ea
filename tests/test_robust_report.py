"""Plan and tables of part 6: every arm has its runs, and a record finds its arm again."""

from robust_training import plan, report, train


def record(words, split, metric, value, seed):
    options = report.options_of(words)
    return {"experiment": "train", "arm": options["inpaint"], "split": split, "metric": metric, "value": value,
            "n": 2000, "seed": seed, "setting": {}, "options": options}  # fmt: skip


def test_the_plan_holds_what_is_compared_over_the_published_seeds():
    arms = plan.arms()
    commands = plan.commands()
    assert len(set(arms.values())) == len(arms)
    assert len(commands) == 3 * len(arms)
    for name in ("plain", "Sal", "CF cagan", "F pgd + Sal", "CF tile + F mixed_rand", "mixup", "group-DRO"):
        assert name in arms
    for words in arms.values():
        train.check(report.options_of(words) | {"infills": None})


def test_records_find_their_arm_and_gains_are_paired():
    rows = []
    for seed, (plain, other) in {5: (0.1, 0.5), 10: (0.2, 0.4)}.items():
        rows += [record(f"--seed {seed}", "flip", "accuracy", plain, seed),
                 record(f"--inpaint tile --seed {seed}", "flip", "accuracy", other, seed)]  # fmt: skip
    rows.append(record("--inpaint tile --seed 100", "flip", "accuracy", 1.0, 100))  # no plain one to compare with
    rows.append(record("--inpaint tile --seed 5 --lr 0.1", "flip", "accuracy", 0.0, 5))  # of no arm
    table = report.accuracies(rows).splitlines()
    assert len(table) == 4
    cells = [cell.strip() for cell in table[3].strip("|").split("|")]
    assert cells[0] == "CF tile"
    assert cells[2].startswith("63.3 ±")
    assert cells[-2].startswith("+30.0 ±")
    assert cells[-1] == "3"


def test_nothing_measured_is_said():
    assert report.accuracies([]) == report.UNMEASURED
