"""What a model does not read as it was given is refused, or said: never a score of 0 without a word."""

import json
from types import SimpleNamespace

import pytest
from openrlhf.cli import train_rm

from openrlhf_gpm.checkpoints.checkpoint import open_checkpoint, save_gpm
from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.samples.formatting import Formatter
from openrlhf_gpm.scoring.scorer import GPM
from openrlhf_gpm.trainer.reward.dataset import GPMRewardDataset

START = "{{ '<|im_start|>' + m['role'] + '\n' "
END = "+ '<|im_end|>\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = "{% for m in messages %}" + START + "+ m['content'] " + END + "{% endfor %}" + ASK
DROPS_THINK = (
    "{% for m in messages %}{% set c = m['content'] %}{% if m['role'] == 'assistant' and '</think>' in c %}"
    "{% set c = c.split('</think>')[-1] | trim %}{% endif %}" + START + "+ c " + END + "{% endfor %}" + ASK
)
USERS_ONLY = CHATML.replace("{{ '<|im_start|>' + m", "{% if m['role'] == 'user' %}{{ '<|im_start|>' + m").replace(
    "\n' }}{% endfor %}", "\n' }}{% endif %}{% endfor %}"
)
NO_SYSTEM = USERS_ONLY.replace("m['role'] == 'user'", "m['role'] in ('user', 'assistant')")
PARTS = (
    "{% for m in messages %}" + START + "}}{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}"
    "{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}" + ASK
)
TURN_MARKS = (
    "{{ bos_token }}{% for m in messages %}{{ '<turn>' + m['role'] + '\n' + m['content'] + '</turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)
REASONED = ["<think>\nThree threes.\n</think>\n\nNo.", "<think>\nOdd.\n</think>\n\nNo.", "Yes."]
LONG = ["No, three times three is nine, and more.", "No, three times three is nine, unlike 7."]


@pytest.fixture
def run(new_gpm, new_tokenizer, tmp_path, capsys):
    """run(command, rows, template, **gpm) -> (exit status, lines of its output, stderr)."""

    def call(command, rows, template=CHATML, *flags, model=None, **gpm):
        folder = tmp_path / f"m{len(list(tmp_path.iterdir()))}"
        save_gpm(model or new_gpm(**gpm), new_tokenizer(template), folder)
        data, out = folder.with_suffix(".jsonl"), folder.with_suffix(".out")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = "--input" if command == "score" else "--data"
        status = cli.main(
            [command, "--model", str(folder), source, str(data), "--output", str(out), "--device", "cpu", *flags]
        )
        lines = [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []
        metrics = json.loads((out / "metrics.json").read_text()) if out.is_dir() else {}
        return status, lines or metrics, capsys.readouterr().err.replace(str(tmp_path), "")

    return call


def test_data_check_counts_what_the_model_does_not_read_as_it_is_given(new_gpm, new_tokenizer, tmp_path, capsys):
    save_gpm(new_gpm(max_len=64), new_tokenizer(DROPS_THINK), tmp_path / "model")
    rows = [
        {"prompt": "Is 9 a prime?", "responses": REASONED, "comparisons": [[0, 2]]},
        {"prompt": "<|im_end|> is what?", "chosen": "A token.", "rejected": "No."},
        {"prompt": "Count.", "chosen": "one " * 200, "rejected": "No."},
        {"prompt": "Is 9 a prime?", "chosen": REASONED[0], "rejected": REASONED[1]},
    ]
    data = tmp_path / "in.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(["data", "check", str(data), "--model", str(tmp_path / "model")]) == 1
    out = capsys.readouterr().out
    (bad,) = (line for line in out.splitlines() if line.startswith(f"    {data}:4: "))
    assert "are the same tokens for this model" in bad
    assert (
        "  the model reads       7 responses\n"
        "    row 1, responses 0 and 1 are the same for this model\n"
        "    1 of 7 responses are cut to fit max_len 64, first row 3\n"
        "    1 text with control tokens of this model's tokenizer, first row 2, read as text" in out
    )


def pairs(responses):
    return [{"prompt": f"Is {n} a prime?", "chosen": responses[0], "rejected": responses[1]} for n in (9, 15, 21)]


def test_responses_that_a_template_makes_equal_tie_with_a_warning(run):
    status, (line,), said = run("score", [{"id": "t", "prompt": "Is 9 a prime?", "responses": REASONED}], DROPS_THINK)
    assert status == 0
    assert line["scores"][0][1] == 0.0 != line["scores"][0][2]
    assert line["warnings"] == ["responses 0 and 1 are the same for this model"]
    assert "jsonl:1: group 't', responses 0 and 1 are the same for this model" in said


def test_nothing_is_said_of_a_group_that_is_read_as_it_is_given(run):
    status, (line,), said = run("score", [{"prompt": "Is 9 a prime?", "responses": [*REASONED, "Yes."]}])
    assert (status, "warnings" in line, "warning" in said) == (0, False, False)


def test_reasoning_is_kept_stripped_or_left_to_the_template_as_the_checkpoint_says(run):
    row = {"id": "t", "prompt": "Is 9 a prime?", "responses": REASONED}
    kept = run("score", [row], DROPS_THINK, reasoning="keep")[1][0]
    assert "warnings" not in kept
    assert kept["scores"] == run("score", [row], CHATML)[1][0]["scores"]
    stripped = run("score", [row], CHATML, reasoning="strip")[1][0]
    assert stripped["warnings"] == ["responses 0 and 1 are the same for this model"]
    assert stripped["scores"] == run("score", [row], DROPS_THINK)[1][0]["scores"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a</think>b", "b"),
        ("a</think>\n\nb", "b"),
        ("b", "b"),
        (" b", " b"),
        ("<think>cut", ""),
        ("b<think>cut", "b"),
    ],
)
def test_what_strip_leaves(chat_tokenizer, text, left):
    formatter = Formatter(chat_tokenizer, chat_template=True, reasoning="strip")
    assert formatter.encode("q", text) == Formatter(chat_tokenizer, chat_template=True).encode("q", left)


def test_pairs_that_a_template_makes_equal_are_bad_rows_of_eval(run):
    status, _, said = run("eval", pairs(REASONED), DROPS_THINK, "--no_plots")
    assert status == 2
    assert "jsonl:1: " in said
    assert "chosen and rejected (responses 0 and 1) are the same tokens for this model" in said
    status, _, said = run("eval", pairs(REASONED), DROPS_THINK, "--no_plots", "--bad_rows", "skip")
    assert status == 2
    assert "3 equal responses" in said


def test_eval_counts_what_it_reads_otherwise(run):
    rows = [
        {"prompt": "Is 9 a prime?", "responses": REASONED},
        {"prompt": "Is 9 a prime?<|im_end|>", "chosen": "No.", "rejected": "Yes.<|im_end|>."},
    ]
    status, metrics, said = run("eval", rows, DROPS_THINK, "--no_plots")
    assert status == 0
    (read,) = metrics["read"]
    counts = {name: read[name] for name in ("responses", "cut", "judged_equal", "control_text")}
    assert counts == {"responses": 5, "cut": 0, "judged_equal": 1, "control_text": 2}
    assert "2 texts with control tokens" in said


@pytest.mark.parametrize("template", [USERS_ONLY, PARTS])
@pytest.mark.parametrize("command", ["score", "eval"])
def test_a_template_without_the_response_is_refused(run, template, command):
    rows = pairs(["No.", "Yes."]) if command == "eval" else [{"prompt": "Hi", "responses": ["No.", "Yes."]}]
    status, lines, said = run(command, rows, template)
    assert (status, bool(lines)) == (2, False)
    assert "the chat template does not write the response's text" in said


def test_a_template_that_leaves_out_the_system_message_is_refused_with_the_row(run):
    system = [{"role": "system", "content": "user"}, {"role": "user", "content": "Is 9 a prime?"}]
    rows = [{"prompt": "Is 9 a prime?", "responses": ["No."]}, {"prompt": system, "responses": ["No.", "Nein."]}]
    status, _, said = run("score", rows, NO_SYSTEM)
    assert status == 2
    assert "jsonl:2: the chat template leaves out the system message" in said
    assert run("score", rows[:1], NO_SYSTEM)[0] == 0
    assert run("score", rows, CHATML)[0] == 0


def test_texts_with_control_tokens_are_counted_with_the_first_place(run):
    rows = [
        {"prompt": "Is nine a prime?", "responses": ["No.", "Yes."]},
        {
            "prompt": "<|im_start|>user\nIs nine a prime?<|im_end|>\n<|im_start|>assistant\n",
            "responses": ["No.", "Yes."],
        },
    ]
    status, (bare, rendered), said = run("score", rows)
    assert status == 0
    assert "1 text with control tokens of this model's tokenizer" in said
    assert "jsonl:2" in said
    assert "give messages, or the bare text" in said
    assert rendered["warnings"] == ["control tokens read as text in the prompt"]
    assert "warnings" not in bare


def test_a_cut_shortens_the_response_and_keeps_what_the_template_writes_after_it(new_tokenizer):
    tokenizer = new_tokenizer(TURN_MARKS)
    formatter = Formatter(tokenizer, chat_template=True, max_len=25)
    short, long = formatter.encode("Is 9 prime?", "No."), formatter.encode("Is 9 prime?", LONG[0])
    assert (short.truncated, long.truncated) == (False, True)
    assert len(long.input_ids) == 25
    assert tokenizer.decode(long.input_ids[-3:]) == "</turn>\n<|im_end|>"
    assert long.input_ids[-3:] == short.input_ids[-3:]
    whole = Formatter(tokenizer, chat_template=True).encode("Is 9 prime?", LONG[0]).input_ids
    assert long.input_ids == [*whole[:22], *whole[-3:]]


def test_responses_that_a_cut_makes_equal_are_said_and_name_max_len(run):
    row = {"id": "long", "prompt": "Is 9 prime?", "responses": LONG}
    status, (line,), said = run("score", [row], TURN_MARKS, max_len=24)
    assert status == 0
    assert line["scores"][0][1] == 0.0
    assert line["warnings"] == [
        "responses 0 and 1 are the same for this model, cut to fit max_len 24",
        "cut to fit max_len 24: response 0, 1",
    ]
    assert "2 of 2 responses are cut to fit max_len 24" in said
    status, _, said = run("eval", pairs(LONG), TURN_MARKS, "--no_plots", max_len=28)
    assert status == 2
    assert "where they are cut to fit max_len" in said


@pytest.mark.parametrize("trunk", ["llama", "gpt2"])
def test_a_text_beyond_the_models_positions_is_refused_with_its_place(run, new_gpm, trunk):
    rows = [{"prompt": "Hi", "responses": ["No.", "Yes."]}, {"prompt": "Hi", "responses": ["Yes.", "No. " * 300]}]
    status, lines, said = run("score", rows, model=new_gpm(trunk))
    assert (status, bool(lines)) == (2, False)
    assert "jsonl:2: responses[1]: prompt and response have" in said
    assert "tokens, but the model has 256 positions (max_position_embeddings)" in said
    assert run("score", rows, model=new_gpm(trunk, max_len=256))[0] == 0


def test_stretched_positions_count(new_config):
    from openrlhf_gpm.models.trunks import max_positions

    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
    assert max_positions(new_config(rope_parameters=rope)) == 256
    assert max_positions(new_config()) == 256
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    assert max_positions(new_config(rope_parameters=rope)) == 512


def test_a_token_without_a_row_of_the_embedding_is_refused_but_a_padding_token_is_not_read(
    run, new_gpm, new_tokenizer
):
    tokenizer = new_tokenizer(CHATML, pad=False)
    tokenizer.add_special_tokens({"pad_token": "<late>"})
    assert tokenizer.pad_token_id == 320
    formatter = Formatter(tokenizer, chat_template=True, rows=320)
    assert formatter.pad_token_id == tokenizer.eos_token_id
    assert max(formatter.encode("<late>", "a<late>").input_ids) < 320
    tokenizer.add_tokens(["wordy"])
    with pytest.raises(ValueError, match="the tokenizer has 322 tokens, the embedding 320 rows: 'wordy' has none"):
        Formatter(tokenizer, chat_template=True, rows=320)


def test_a_padding_token_that_was_never_trained_does_not_keep_a_model_from_scoring(new_gpm, new_tokenizer, tmp_path):
    tokenizer = new_tokenizer(CHATML, pad=False)
    tokenizer.add_special_tokens({"pad_token": "<late>"})
    save_gpm(new_gpm(), tokenizer, tmp_path / "gpm")
    config = json.loads((tmp_path / "gpm" / "config.json").read_text())
    config["pad_token_id"] = 320
    (tmp_path / "gpm" / "config.json").write_text(json.dumps(config))
    gpm = GPM.from_pretrained(tmp_path / "gpm", device="cpu", share_prompt="off")
    assert gpm.score("Is 9 a prime?", ["No, it is not.", "Yes<late>"])["mean_scores"] is not None


@pytest.mark.parametrize(
    ("prompt", "responses", "reason"),
    [
        (None, ["a"], "a prompt must be a text or a list of messages, got None"),
        ("q", None, "responses must be a list of texts, got None"),
        ("q", "ab", "responses must be a list of texts, got 'ab'"),
        ("q", ["a", None], r"responses\[1\]: a response must be a text, got None"),
        ("q", [b"a"], r"responses\[0\]: a response must be a text, got b'a'"),
        ("q", ["a\ud800", "b"], r"responses\[0\]: a response has half a surrogate pair at character 1"),
        ("q\ud800", ["b"], "prompt has half a surrogate pair"),
        ([], ["a"], "a prompt must be a text or a list of messages"),
        ([{"content": "q"}], ["a"], r"prompt\[0\] must be a message"),
        ([{"role": "user<|im_end|>", "content": "q"}], ["a"], r"the role of prompt\[0\] must be a word"),
        ([{"role": "user", "content": [{"type": "image"}]}], ["a"], "must be a text .no parts, no images."),
        ([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], ["b"], "ends with an assistant"),
    ],
)
def test_what_is_no_prompt_or_no_response_is_named(gpm_checkpoint, prompt, responses, reason):
    with pytest.raises(ValueError, match=reason):
        GPM.from_pretrained(gpm_checkpoint, device="cpu").score(prompt, responses)


@pytest.fixture
def base(new_gpm, new_tokenizer, tmp_path):
    """base(template) -> the directory of a model to train further."""

    def save(template, **gpm):
        save_gpm(new_gpm(**gpm), new_tokenizer(template), tmp_path / "base")
        return tmp_path / "base"

    return save


def train(folder, rows, *flags):
    """The dataset of a train_rm run."""
    common = ["--reward_model_type", "gpm", "--model.model_name_or_path", str(folder), "--data.dataset", "any"]
    common += ["--data.max_len", "256", "--data.apply_chat_template"]
    args = train_rm.parse_args([*common, *flags])
    strategy = SimpleNamespace(args=args, is_rank_0=lambda: True)
    return GPMRewardDataset(rows, open_checkpoint(folder).tokenizer(), args.data.max_len, strategy)


def test_training_refuses_rows_with_equal_tokens_or_skips_and_counts_them(base, capsys, caplog):
    folder = base(DROPS_THINK)
    with pytest.raises(SystemExit) as stopped:
        train(folder, pairs(REASONED))
    assert stopped.value.code == 2
    assert "row 1: chosen and rejected (responses 0 and 1) are the same tokens" in capsys.readouterr().err
    rows = [*pairs(REASONED), {"prompt": "Hi", "chosen": "Hello.", "rejected": "No.<|im_end|>."}]
    data = train(folder, rows, "--gpm.bad_rows", "skip")
    assert len(data) == 1


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--data.max_len", "1024"], "--data.max_len 1024 is longer than the model's 256 positions"),
        (["--data.tokenizer_chat_template", USERS_ONLY], "the chat template does not write the response's text"),
    ],
)
def test_train_rm_refuses_before_the_data_are_read(base, capsys, flags, reason):
    with pytest.raises(SystemExit) as stopped:
        train(base(CHATML), None, *flags)
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("reasoning", "strip"), ("pool", "mean")])
def test_the_flags_for_what_is_read_are_stored(name, value):
    from openrlhf_gpm.trainer.reward.flags import config_from_flags

    common = ["--reward_model_type", "gpm", "--model.model_name_or_path", "hub/name", "--data.dataset", "any"]
    args = train_rm.parse_args([*common, f"--gpm.{name}", value])
    assert config_from_flags(args).to_dict()[name] == value


def test_a_model_whose_embeddings_collapsed_says_so(new_gpm, chat_tokenizer, tmp_path, caplog):
    model = new_gpm()
    model.score.weight.data.zero_()
    save_gpm(model, chat_tokenizer, tmp_path / "gpm")
    gpm = GPM.from_pretrained(tmp_path / "gpm", device="cpu")
    gpm.score("Is 9 a prime?", ["No.", "No."])
    assert "every score is 0" not in caplog.text  # there was nothing to compare
    gpm.score("Is 9 a prime?", ["No.", "Yes."])
    assert "every score is 0: the model's embeddings have collapsed" in caplog.text
