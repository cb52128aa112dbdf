"""examples/smollm2/reproduce.py on a tiny model: tables that are recomputed, folds that are not trained twice."""

import json
import os
import random
import sys

import pytest
from transformers import LlamaForCausalLM

from openrlhf_gpm.data import read_preferences

NAMES = ["Ann", "Bob", "Cat"]


@pytest.fixture(scope="module")
def tables(stack, new_config, chat_tokenizer, cpu_env, tmp_path_factory):
    """call(words) -> the log; `call.out` has what it wrote. 40 prompts with a cycle over three names."""
    folder = tmp_path_factory.mktemp("reproduce")
    LlamaForCausalLM(new_config()).save_pretrained(folder / "model")
    chat_tokenizer.save_pretrained(folder / "model")
    (folder / "model15").symlink_to(folder / "model")
    dice = random.Random(0)
    rows = []
    for i in range(40):
        answers = [f"{name} says {dice.randrange(100)}." for name in NAMES]
        rows += [{"prompt": f"Question {i}?", "chosen": answers[j], "rejected": answers[j - 2]} for j in range(3)]
    stack.write_jsonl(folder / "cyc3_train.jsonl", rows)
    env = cpu_env | {"OUT": str(folder), "FLAGS": "--train.max_epochs 1 --data.max_len 128"}

    def call(*words):
        script = "examples/smollm2/reproduce.py"
        sets = () if "--sets" in words else ("--sets", "cyc3_train")
        command = [sys.executable, script, words[0], "--data", str(folder), *sets, *words[1:]]
        return stack.run(command, folder / "log", env)

    call.out = folder
    return call


def rows_of(tables, name):
    return json.loads((tables.out / f"tables/{name}.json").read_text())


@pytest.mark.recipes
def test_folds_are_trained_once_and_pooled(tables):
    first = tables("cycles", "--folds", "0", "1", "--models", "gpm")
    assert first.count("train.sh cyc3_train-gpm-") == 2
    row, other = rows_of(tables, "cycles")
    held_out = [tables.out / f"folds/cyc3_train/fold{fold}/cyc3_train.jsonl" for fold in (0, 1)]
    prompts = [group.prompt for file in held_out for _, group in read_preferences(file)]
    assert len(set(prompts)) == len(prompts) == row["prompts"]
    assert (row["folds"], row["comparisons"], row["bound"]) == (2, 3 * len(prompts), pytest.approx(2 / 3))
    parts = [json.loads((tables.out / f"eval/cyc3_train-gpm-{fold}/metrics.json").read_text()) for fold in (0, 1)]
    right = sum(part["accuracy"] * part["pairs"] for part in parts)
    assert row["accuracy"] == pytest.approx(right / row["comparisons"])
    assert (other["row"], other["accuracy"]) == ("cyc3_train, gpm, without the first fold", parts[1]["accuracy"])
    for fold in (0, 1):
        train = {group.prompt for _, group in read_preferences(held_out[fold].with_name("train.jsonl"))}
        assert train.isdisjoint(group.prompt for _, group in read_preferences(held_out[fold]))
        assert len(train) + sum(1 for _ in read_preferences(held_out[fold])) == 40

    begun = tables.out / "cyc3_train-bt-0"  # as a killed training leaves it: with the run's own flags, no model
    begun.mkdir()
    (begun / "run.json").write_text((tables.out / "cyc3_train-gpm-0/run.json").read_text())

    again = tables("cycles", "--folds", "0", "--models", "gpm", "bt")
    assert again.count("train.sh ") == 1
    assert "train.sh cyc3_train-bt-0" in again
    assert [row["folds"] for row in rows_of(tables, "cycles")] == [2, 1, 1]
    assert {json.loads(file.read_text())["layers"] for file in tables.out.glob("*/training.json")} == {15}

    os.utime(tables.out / "cyc3_train-gpm-0/training.json")  # as if it had been trained anew: its scores are old
    later = tables("cycles", "--folds", "0", "--models", "gpm")
    assert (later.count("train.sh "), later.count("openrlhf-gpm eval ")) == (0, 1)
    assert [row["folds"] for row in rows_of(tables, "cycles")] == [2, 1, 1]  # Bradley-Terry's stays

    file = tables.out / "cyc3_train.jsonl"
    text = file.read_text()
    file.write_text(text.replace("Question 0?", "Question zero?"))
    with pytest.raises(AssertionError, match=r"fold0 was made of another cyc3_train\.jsonl: set OUT"):
        tables("cycles", "--folds", "0", "--models", "gpm")
    file.write_text(text)


@pytest.mark.recipes
def test_one_model_of_several_sets_is_judged_on_each(tables):
    rows = [json.loads(line) for line in (tables.out / "cyc3_train.jsonl").read_text().splitlines()]
    write = "".join(json.dumps(row) + "\n" for row in rows if "Ann" not in row["chosen"])
    (tables.out / "cyc4_train.jsonl").write_text(write)
    log = tables("cycles", "--folds", "0", "--models", "gpm", "--together", "--sets", "cyc3_train", "cyc4_train")
    assert log.count("train.sh ") == 1
    train = [str(tables.out / f"folds/{name}/fold0/train.jsonl") for name in ("cyc3_train", "cyc4_train")]
    assert f"train.sh cyc3_train+cyc4_train-gpm-0 {','.join(train)}" in log
    first, second = rows_of(tables, "together")
    assert [first["row"], second["row"]] == ["cyc3_train, gpm", "cyc4_train, gpm"]
    assert first["comparisons"] == 3 * first["prompts"]
    assert second["comparisons"] == 2 * first["prompts"]


@pytest.mark.recipes
def test_the_curve_uses_the_model_that_the_table_of_cycles_trained(tables):
    tables("cycles", "--folds", "0", "--models", "gpm")
    log = tables("curve", "--prompts", "20")
    assert log.count("train.sh ") == 1
    assert "train.sh cyc3_train-gpm-0-20" in log
    part, whole, *frozen = rows_of(tables, "curve")
    assert {part["prompts"], *(row["prompts"] for row in frozen)} == {whole["prompts"]}  # the same are held out
    assert [row["row"].partition(", gpm ")[2] for row in frozen] == [
        f"on frozen states, {size} training prompts" for size in (20, "all")
    ]
    assert frozen[1]["accuracy"] > 0.9  # the names alone decide
    assert (tables.out / "tables/curve-cyc3_train.png").stat().st_size > 5000
    assert whole["accuracy"] == json.loads((tables.out / "eval/cyc3_train-gpm-0/metrics.json").read_text())["accuracy"]


@pytest.mark.recipes
def test_an_ablation_changes_one_setting_of_the_first_folds_model(tables):
    tables("cycles", "--folds", "0", "--models", "gpm")
    assert tables("ablation", "--rows", "dim2").count("train.sh ") == 1
    assert tables("ablation", "--rows", "unit").count("train.sh ") == 1
    first, unit, dim2 = rows_of(tables, "ablation")
    configs = {
        name: json.loads((tables.out / f"cyc3_train-gpm-0{name}/config.json").read_text())["gpm"]
        for name in ("", "-unit", "-dim2")
    }
    others = {name: {key for key in config if config[key] != configs[""][key]} for name, config in configs.items()}
    assert others == {"": set(), "-unit": {"normalize", "tau"}, "-dim2": {"dim", "gate"}}
    assert first["change"] is None
    for row in (unit, dim2):
        assert row["change"] == pytest.approx(row["accuracy"] - first["accuracy"])
        assert row["comparisons"] == first["comparisons"]
    assert (tables.out / "tables/ablation.md").read_text().splitlines()[0].endswith("| difference [95 %] | minutes |")


@pytest.mark.recipes
def test_two_models_of_the_same_preferences_are_compared_pair_by_pair(tables, stack):
    rows = [{"prompt": f"Say {i}.", "chosen": f"Yes, {i}.", "rejected": f"No, not {i}."} for i in range(24)]
    stack.write_jsonl(tables.out / "train_prefs.jsonl", rows)
    chosen = ["Yes, of course.", "Yes, at once.", "Yes, with pleasure.", "Yes."]  # the last is shorter than its rival
    judged = [{"prompt": f"Say {i}!", "chosen": chosen[i % 4], "rejected": "No, no."} for i in range(12)]
    stack.write_jsonl(tables.out / "eval_hhh.jsonl", judged)
    log = tables("prefs", "--sets", "eval_hhh")
    assert log.count("train.sh prefs-") == 2
    (row,) = rows_of(tables, "prefs")
    assert (row["row"], row["prompts"], row["comparisons"]) == ("eval_hhh", 12, 12)
    gpm, bt, longer = row["accuracy"]
    for name, accuracy in (("gpm", gpm), ("bt", bt)):
        assert accuracy == json.loads((tables.out / f"eval/prefs-{name}/metrics.json").read_text())["accuracy"]
    assert longer == 0.75
    assert row["difference"] == pytest.approx(gpm - bt)
    assert row["difference_ci95"][0] <= row["difference"] <= row["difference_ci95"][1]
    assert (tables.out / "tables/prefs.md").read_text().count("\n") == 3

    stack.write_jsonl(tables.out / "train_prefs.jsonl", rows[1:])
    with pytest.raises(AssertionError, match="prefs-gpm was trained with other data: move it away"):
        tables("prefs", "--sets", "eval_hhh")


def test_the_probe_judges_every_prompt_when_it_is_held_out(tables):
    tables("probe", "--prompts", "8")
    rows = {row["row"]: row for row in rows_of(tables, "probe")}
    assert len(rows) == 7
    assert {row["comparisons"] for row in rows.values()} == {120}
    assert rows["cyc3_train, gpm on the length alone"]["accuracy"] < 0.5  # most answers are equally long
    cycle = rows["cyc3_train, gpm on frozen half way up, mean"]
    reward = rows["cyc3_train, bt on frozen half way up, mean"]
    assert cycle["accuracy"] > 0.9  # the names alone decide
    assert reward["accuracy"] <= 2 / 3 + 1e-9
    curve = {row["row"]: row for row in rows_of(tables, "probe_curve")}
    assert len(curve) == 4
    assert curve["cyc3_train, gpm on frozen states, all training prompts"]["accuracy"] == cycle["accuracy"]
    assert curve["cyc3_train, gpm on frozen states, 8 training prompts"]["comparisons"] == 120


def test_data_that_is_missing_is_named(tables, stack, tmp_path):
    command = [sys.executable, "examples/smollm2/reproduce.py", "cycles", "--data", str(tmp_path)]
    with pytest.raises(AssertionError, match=r"has no cyc4_train.parquet: --data needs a folder"):
        stack.run([*command, "--sets", "cyc4_train"], tmp_path / "log")
