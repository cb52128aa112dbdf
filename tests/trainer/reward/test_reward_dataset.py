"""Batches of preferences: every response once, every comparison used, prompts shared where that is exact."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from openrlhf.cli import train_rm

from openrlhf_gpm.samples.formatting import pair_text
from openrlhf_gpm.trainer.reward.dataset import GPMRewardDataset

CYCLE = [
    {"prompt": "Name a prime.", "chosen": "7", "rejected": "9", "id": "a"},
    {"prompt": "Name a prime.", "chosen": "9", "rejected": "Two.", "id": "b"},
    {"prompt": "Name a prime.", "chosen": "Two.", "rejected": "7", "id": "c"},
    {"prompt": "Say hello to me.", "chosen": "Hello!", "rejected": "No.", "label": 0.25, "margin": -2.0, "id": "d"},
]


@pytest.fixture
def model(tmp_path) -> str:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 320}
    tied = {"tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes, **tied}))
    return str(tmp_path)


@pytest.fixture
def dataset(model, chat_tokenizer):
    """dataset(rows, *flags) -> the dataset of a train_rm run with these flags."""

    def build(rows: list[dict], *flags: str) -> GPMRewardDataset:
        common = ["--reward_model_type", "gpm", "--model.model_name_or_path", model, "--data.dataset", "any"]
        form = ["--data.apply_chat_template", "--ds.attn_implementation", "sdpa"]
        args = train_rm.parse_args([*common, *form, *flags])
        strategy = SimpleNamespace(args=args, is_rank_0=lambda: True)
        return GPMRewardDataset(rows, chat_tokenizer, args.data.max_len, strategy)

    return build


def test_rows_of_one_prompt_become_one_group_with_every_comparison(dataset):
    rows = dataset(CYCLE, "--gpm.merge_prompts").rows
    assert [(len(row.samples), len(row.comparisons)) for row in rows] == [(3, 3), (2, 1)]
    assert [(c.first, c.second) for c in rows[0].comparisons] == [(0, 1), (1, 2), (2, 0)]
    assert len(dataset(CYCLE).rows) == 4


@pytest.mark.parametrize("share", ["auto", "off"])
def test_a_batch_points_at_the_embeddings_and_gates_of_its_comparisons(dataset, new_gpm, share):
    """Against one call per comparison, each with its own two samples."""
    data = dataset(CYCLE, "--gpm.merge_prompts", "--gpm.share_prompt", share)
    batch = data.collate_fn(data.rows)
    assert ("forest" in batch["inputs"]) == (share == "auto")
    assert batch["label"].tolist() == [1.0, 1.0, 1.0, 0.25]
    assert batch["margin"].tolist() == [0.0, 0.0, 0.0, -2.0]
    model = new_gpm(dim=4, gate="softplus")
    v, gate = model(**batch["inputs"])
    c = 0
    for row in data.rows:
        for comparison in row.comparisons:
            pair = [row.samples[comparison.first], row.samples[comparison.second]]
            for sample, index in zip(pair, (batch["first"][c], batch["second"][c]), strict=True):
                one_v, one_gate = model(
                    torch.tensor([sample.input_ids]), prompt_lens=torch.tensor([sample.prompt_len])
                )
                torch.testing.assert_close(v[index], one_v[0], atol=1e-5, rtol=1e-4)
                torch.testing.assert_close(gate[batch["gate"][c]], one_gate[0], atol=1e-5, rtol=1e-4)
            c += 1
    assert c == len(batch["first"]) == 4


def test_a_forest_has_fewer_tokens_than_full_encoding(dataset):
    shared, full = (
        data.collate_fn(data.rows)["inputs"]["input_ids"].numel()
        for data in (dataset(CYCLE, "--gpm.merge_prompts"), dataset(CYCLE, "--gpm.share_prompt", "off"))
    )
    assert shared < 0.6 * full


def test_on_a_cpu_sdpa_takes_the_place_of_flash_attention(model, caplog):
    flags = ["--reward_model_type", "gpm", "--model.model_name_or_path", model, "--data.dataset", "any"]
    args = train_rm.parse_args([*flags, "--ds.attn_implementation", "flash_attention_2", "--ds.packing_samples"])
    assert args.ds.attn_implementation == "sdpa"
    assert "[CPU] --ds.attn_implementation flash_attention_2 needs a GPU" in caplog.text


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("attention", "shares"), [("sdpa", True), ("flash_attention_2", True), ("eager", False)])
def test_sdpa_and_flash_attention_read_forests_and_eager_encodes_in_full(dataset, attention, shares):
    data = dataset(CYCLE, "--gpm.merge_prompts", "--ds.attn_implementation", attention)
    assert ("forest" in data.collate_fn(data.rows)["inputs"]) is shares


@pytest.mark.parametrize("share", ["auto", "off"])
def test_the_language_model_loss_is_that_of_the_preferred_responses(dataset, new_gpm, share):
    """Token by token in plain Python: the preferred response given its prompt, its EOS included."""
    data = dataset(CYCLE[2:], "--gpm.lm_coef", "0.1", "--gpm.share_prompt", share)
    batch = data.collate_fn(data.rows)
    model = new_gpm(dim=4, gate="none")
    loss = model(**batch["inputs"], return_output=True)[2].lm_loss
    losses = []
    for row, preferred in zip(data.rows, (0, 1), strict=True):  # the last row's label prefers its second response
        sample = row.samples[preferred]
        states = model.model(torch.tensor([sample.input_ids])).last_hidden_state[0]
        log_probs = (states @ model.model.embed_tokens.weight.T).log_softmax(-1)
        losses += [-log_probs[t - 1, sample.input_ids[t]] for t in range(sample.prompt_len, len(sample.input_ids))]
    torch.testing.assert_close(loss, torch.stack(losses).mean(), atol=1e-4, rtol=1e-4)


def test_the_pairwise_encoder_reads_both_orders_of_a_comparison(dataset):
    data = dataset(CYCLE[:1], "--gpm.head", "pairwise")
    want = [data.formatter.encode("Name a prime.", pair_text(*order)) for order in (("7", "9"), ("9", "7"))]
    assert data.rows[0].samples == want
    assert [(c.first, c.second, c.label) for c in data.rows[0].comparisons] == [(0, 1, 1.0)]


def test_prompts_are_held_out_whole(dataset):
    rows = [{"prompt": f"Number {i // 2}", "chosen": f"yes {i}", "rejected": "no"} for i in range(40)]
    data = dataset(rows, "--gpm.held_out", "0.3", "--gpm.share_prompt", "off")
    prompts = [
        {tuple(row.samples[0].input_ids[: row.samples[0].prompt_len]) for row in d.rows} for d in (data, data.held_out)
    ]
    kept, held = prompts
    assert kept
    assert held
    assert not kept & held
    assert len(data) + len(data.held_out) == 40
    assert dataset(rows).held_out is None


def test_margins_that_the_model_cannot_reach_are_counted(dataset, caplog):
    """F21: embeddings of length 1, two planes whose scales sum to 2."""
    rows = [CYCLE[0] | {"margin": margin} for margin in (0.5, 1.9, 2.1, 50)]
    flags = ["--model.margin_loss_enable", "--gpm.dim", "4"]
    with caplog.at_level("WARNING"):
        dataset(rows, *flags)
        assert "2 of 4 margins are above 2, the largest raw score" in caplog.text
        caplog.clear()
        dataset(rows, *flags, "--gpm.no_normalize")
        dataset(rows, "--gpm.dim", "4")
    assert "margins" not in caplog.text


def test_a_row_that_lacks_a_column_in_csv_is_told_of_what_datasets_leaves_out(dataset, capsys):
    rows = [{"prompt": "Is it?", "chosen": None, "rejected": "No."}]  # as datasets reads N/A in a cell
    with pytest.raises(SystemExit, match="2"):
        dataset(rows, "--data.dataset", "in.csv")
    assert "in CSV, `datasets` reads N/A and the like as absent" in capsys.readouterr().err


def test_bad_rows_end_the_run_unless_they_are_to_be_skipped(dataset, capsys, caplog):
    rows = [*CYCLE[:2], {"prompt": "p", "chosen": "", "rejected": "x"}]
    with pytest.raises(SystemExit) as ended:
        dataset(rows)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "row 3" in error
    assert "--gpm.bad_rows skip" in error
    with caplog.at_level("WARNING"):
        assert len(dataset(rows, "--gpm.bad_rows", "skip")) == 2
    assert "1 of 3 rows skipped: 1 empty response (row 3)" in caplog.text


def test_a_prompt_that_fills_max_len_is_a_bad_row_named_by_its_place_in_the_file(dataset, capsys):
    rows = [CYCLE[0], CYCLE[1], {"prompt": "long " * 60, "chosen": "7", "rejected": "9"}]
    short = ("--data.max_len", "64", "--gpm.merge_prompts")
    with pytest.raises(SystemExit) as ended:
        dataset(rows, *short)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "preference data, row 3: the prompt has" in error
    assert "--gpm.bad_rows skip" in error
    assert len(dataset(rows, *short, "--gpm.bad_rows", "skip")) == 1


def test_a_gpm_that_is_trained_further_keeps_its_checkpoints_format_and_head(dataset, model):
    gpm = {"dim": 2, "gate": "none", "normalize": False, "head": "pairwise", "max_len": 40}
    config = json.loads(Path(model, "config.json").read_text())
    authors = gpm | {"generation_prompt": False, "bos": "tokenizer", "eos": "replace"}
    Path(model, "config.json").write_text(json.dumps(config | {"gpm": authors}))
    data = dataset(CYCLE[:1])
    assert (data.formatter.generation_prompt, data.formatter.bos, data.formatter.eos) == (
        False,
        "tokenizer",
        "replace",
    )
    assert data.formatter.max_len == 40
    assert dataset(CYCLE[:1], "--data.max_len", "38").formatter.max_len == 38
    want = [data.formatter.encode("Name a prime.", pair_text(*order)) for order in (("7", "9"), ("9", "7"))]
    assert data.rows[0].samples == want


def test_mse_needs_log_odds_in_every_row(dataset, capsys):
    rows = [CYCLE[0] | {"log_odds": 1.5}, CYCLE[1]]
    with pytest.raises(SystemExit):
        dataset(rows, "--gpm.loss", "mse")
    assert "log_odds" in capsys.readouterr().err
    data = dataset(rows[:1], "--gpm.loss", "mse")
    assert data.collate_fn(data.rows)["log_odds"].tolist() == [1.5]
