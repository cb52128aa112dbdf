import pytest
import torch

import openrlhf_gpm
from openrlhf_gpm import core
from openrlhf_gpm.checkpoints.checkpoint import load_gpm, open_checkpoint, save_gpm
from openrlhf_gpm.data import Group
from openrlhf_gpm.samples.batch import collate_groups, encode_groups, plan_batches
from openrlhf_gpm.samples.formatting import Formatter, pair_text
from openrlhf_gpm.scoring.backend import pick_device
from openrlhf_gpm.scoring.results import group_result, is_finite, pairwise_result
from openrlhf_gpm.scoring.scorer import GPM
from openrlhf_gpm.scoring.torch_backend import TorchBackend, embed_batch

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
GROUPS = [
    Group("Name a prime.", ["Seven.", "Nine.", "7", "Seven is a prime, and nine is not a prime. " * 5], "q1"),
    Group(CHAT, ["Hello, how are you?", ""], 7),
    Group("What is the capital of France?", ["Paris."], None),
]


@pytest.fixture(scope="module")
def gpm(gpm_checkpoint):
    return GPM.from_pretrained(gpm_checkpoint, device="cpu")


def test_a_result_by_hand():
    """Rock, paper, scissors as unit vectors at 0, 120 and 240 degrees: s = sin(angle from i to j) / tau."""
    angle = torch.arange(3) * 2 * torch.pi / 3
    result = group_result(torch.stack([angle.cos(), angle.sin()], dim=-1), None, tau=0.5)
    s = 3**0.5  # sin(120 degrees) / 0.5
    torch.testing.assert_close(torch.tensor(result["scores"]), torch.tensor([[0, s, -s], [-s, 0, s], [s, -s, 0]]))
    p = 1 / (1 + 2.718281828459045**-s)
    assert result["probs"][0] == pytest.approx([0.5, p, 1 - p], abs=1e-6)
    assert result["mean_scores"] == pytest.approx([0, 0, 0], abs=1e-6)
    assert result["win_rates"] == pytest.approx([0.5, 0.5, 0.5], abs=1e-6)
    assert result["von_neumann"] == pytest.approx([1 / 3, 1 / 3, 1 / 3], abs=1e-4)
    assert result["cyclic_share"] == pytest.approx(1, abs=1e-6)
    assert result["gate"] is None


def test_a_bradley_terry_result_ranks_by_reward_and_has_no_cyclic_share():
    result = group_result(core.embed_rewards(torch.tensor([0.0, 2.0, 1.0])), None, tau=1.0)
    assert result["ranking"] == [1, 2, 0]
    assert result["mean_scores"] == pytest.approx([-1.5, 1.5, 0.0])  # r_i minus the mean of the other two
    assert result["scores"][1] == pytest.approx([2.0, 0.0, 1.0])
    assert result["cyclic_share"] == pytest.approx(0, abs=1e-6)
    assert result["von_neumann"] == pytest.approx([0, 1, 0], abs=1e-3)


def test_ties_are_ranked_by_index():
    v = core.embed_rewards(torch.tensor([1.0, 3.0, 1.0, 3.0]))
    assert group_result(v, None, tau=1.0)["ranking"] == [1, 3, 0, 2]


def test_the_gate_scales_the_planes_and_tau_divides():
    v = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
    assert group_result(v, torch.tensor([2.0, 0.5]), tau=0.1)["scores"][0][1] == pytest.approx(25.0)


def test_score_has_the_keys_and_shapes_of_the_contract(gpm):
    result = gpm.score("Name a prime.", ["Seven.", "Nine.", "7", "Two"])
    shapes = {name: torch.tensor(value).shape for name, value in result.items() if name != "id"}
    assert list(result) == [
        *("id", "embeddings", "gate", "scores", "probs", "mean_scores", "win_rates", "ranking", "von_neumann"),
        "cyclic_share",
    ]
    assert shapes == {
        "embeddings": (4, 6),
        "gate": (3,),
        "scores": (4, 4),
        "probs": (4, 4),
        "mean_scores": (4,),
        "win_rates": (4,),
        "ranking": (4,),
        "von_neumann": (4,),
        "cyclic_share": (),
    }
    scores = torch.tensor(result["scores"])
    assert torch.equal(scores, -scores.T)
    assert scores.abs().max() > 0.01
    assert sorted(result["ranking"]) == [0, 1, 2, 3]
    assert sum(result["win_rates"]) == pytest.approx(2)


def test_score_is_one_call_of_the_model_and_the_formulas_of_core(gpm):
    """The Ray actor's way: neighbours with one prompt, padded."""
    prompt, responses = GROUPS[0].prompt, GROUPS[0].responses
    result = gpm.score(prompt, responses)
    batch = collate_groups(encode_groups(gpm.formatter, [prompt] * 4, responses), 2, share=False)
    v, gate = embed_batch(gpm.backend.model, batch, "cpu")
    scores = core.group_scores(v, gate[0], gpm.config.tau)
    torch.testing.assert_close(torch.tensor(result["embeddings"]), v, atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(result["gate"]), gate[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.tensor(result["scores"]), scores, atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(result["win_rates"]), core.win_rates(scores), atol=1e-5, rtol=0)
    torch.testing.assert_close(torch.tensor(result["mean_scores"]), core.mean_scores(scores), atol=1e-5, rtol=0)


def test_a_pair_score_is_the_preference_score_of_its_embeddings(gpm):
    result = gpm.score("Hello", ["Fine.", "No."])
    v, gate = gpm.embed(["Hello", "Hello"], ["Fine.", "No."])
    expected = core.preference_score(v[0], v[1], gate[0], gpm.config.tau)
    assert result["scores"][0][1] == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_results_do_not_depend_on_batching_and_keep_their_order(gpm, gpm_checkpoint, batch_tokens):
    other = GPM.from_pretrained(gpm_checkpoint, device="cpu", batch_tokens=batch_tokens)
    results = list(other.score_groups(GROUPS * 3))
    assert [result["id"] for result in results] == ["q1", 7, "2", "q1", 7, "5", "q1", 7, "8"]
    for result, group in zip(results, GROUPS * 3, strict=True):
        alone = gpm.score(group.prompt, group.responses)
        torch.testing.assert_close(torch.tensor(result["scores"]), torch.tensor(alone["scores"]), atol=1e-5, rtol=0)


def test_sharing_the_prompt_or_not_gives_the_same_results(gpm, gpm_checkpoint):
    off = GPM.from_pretrained(gpm_checkpoint, device="cpu", share_prompt="off")
    groups = [[gpm.formatter.encode(g.prompt, r) for r in g.responses] for g in GROUPS]
    assert any(share for _, share in plan_batches(groups, 1000, share=True))
    for shared, full in zip(gpm.score_groups(GROUPS), off.score_groups(GROUPS), strict=True):
        for name in ("embeddings", "gate", "scores"):
            torch.testing.assert_close(torch.tensor(shared[name]), torch.tensor(full[name]), atol=1e-5, rtol=0)


def test_scores_is_the_matrix_of_score(gpm):
    matrix = gpm.scores("Hello", ["Fine.", "No.", "7"])
    assert torch.equal(matrix, torch.tensor(gpm.score("Hello", ["Fine.", "No.", "7"])["scores"]))


# Heads


def test_a_reward_head_gives_bradley_terry_scores(new_gpm, chat_tokenizer):
    model = new_gpm(head="reward", dim=2, gate="none", normalize=False, tau=0.5)
    gpm = GPM(TorchBackend(model), Formatter(chat_tokenizer, chat_template=True))
    result = gpm.score("Hello, how are you?", ["Fine.", "No.", "Seven."])
    v = torch.tensor(result["embeddings"])
    assert torch.equal(v[:, 1], torch.ones(3))
    reward = [gpm.embed(["Hello, how are you?"], [r])[0][0, 0] for r in ("Fine.", "No.")]
    assert result["scores"][0][1] == pytest.approx(float(reward[0] - reward[1]) / 0.5, abs=1e-4)
    assert result["gate"] is None


def test_a_pairwise_result_by_hand():
    r = torch.tensor([1.0, 5.0, 2.0, 4.0, 0.0, 3.0])  # (0,1) (0,2) (1,0) (1,2) (2,0) (2,1)
    result = pairwise_result(r, 3, tau=0.5)
    assert result["scores"] == [[0, -2, 10], [2, 0, 2], [-10, -2, 0]]
    assert result["mean_scores"] == [4, 2, -6]
    assert result["embeddings"] is None
    assert result["gate"] is None
    assert pairwise_result(torch.empty(0), 1, tau=1.0)["scores"] == [[0]]


def test_a_pairwise_head_reads_both_orders_of_every_pair(new_gpm, chat_tokenizer):
    model = new_gpm(head="pairwise", dim=2, gate="none", normalize=False, tau=0.5)
    gpm = GPM(TorchBackend(model), Formatter(chat_tokenizer, chat_template=True))
    responses = ["Fine.", "No.", "Seven."]

    def r(i, j):
        return gpm.embed(["Hello"], [pair_text(responses[i], responses[j])])[0][0, 0]

    expected = torch.tensor([[(r(i, j) - r(j, i)) / 0.5 if i != j else 0.0 for j in range(3)] for i in range(3)])
    assert expected.abs().max() > 0.01
    for result in gpm.score_groups([Group("Hello", responses, "a"), Group("Hello", responses[:1], "b")]):
        size = len(result["scores"])
        torch.testing.assert_close(torch.tensor(result["scores"]), expected[:size, :size], atol=1e-4, rtol=0)
        assert result["embeddings"] is None
    torch.testing.assert_close(gpm.scores("Hello", responses), expected, atol=1e-4, rtol=0)


# Groups


def test_a_group_of_one_is_neutral(gpm):
    result = gpm.score("Hello", ["Fine."])
    assert result["scores"] == [[0.0]]
    assert result["probs"] == [[0.5]]
    assert result["mean_scores"] == [0.0]
    assert result["win_rates"] == [0.5]
    assert result["ranking"] == [0]
    assert result["von_neumann"] == [1.0]
    assert result["cyclic_share"] == 0.0


def test_results_come_before_all_groups_are_read(gpm, gpm_checkpoint):
    read = []

    def groups():
        for group in GROUPS * 100:
            read.append(group)
            yield group

    small = GPM.from_pretrained(gpm_checkpoint, device="cpu", batch_tokens=32)
    next(small.score_groups(groups()))
    assert len(read) < 30


def test_equal_responses_have_equal_scores(gpm):
    scores = torch.tensor(gpm.score("Hello", ["Fine.", "No.", "Fine."])["scores"])
    assert scores[0, 2].abs() < 1e-5
    torch.testing.assert_close(scores[0], scores[2], atol=1e-5, rtol=0)


def test_the_gate_of_a_group_is_that_of_its_whole_prompt(new_gpm, plain_tokenizer, tmp_path):
    """In format 1 a plain response may merge with the prompt's last token; its gate then reads one token less."""
    save_gpm(new_gpm(chat_template=False, format_version=1), plain_tokenizer, tmp_path / "gpm")
    gpm = GPM.from_pretrained(tmp_path / "gpm", device="cpu")
    prompt, merging, other = "What is the capital of Fr", "ance?", " x"
    lens = [gpm.formatter.encode(prompt, response).prompt_len for response in (merging, other)]
    assert lens[0] < lens[1], "this test needs a merge across the border"
    whole = torch.tensor(gpm.score(prompt, [other])["gate"])
    for responses in ([merging, other], [other, merging]):
        torch.testing.assert_close(torch.tensor(gpm.score(prompt, responses)["gate"]), whole, atol=1e-6, rtol=0)


def test_a_model_without_a_gate_has_gate_null(new_gpm, chat_tokenizer):
    gpm = GPM(TorchBackend(new_gpm(gate="none")), Formatter(chat_tokenizer, chat_template=True))
    result = gpm.score("Hello", ["Fine.", "No."])
    assert result["gate"] is None
    assert result["scores"][0][1] == -result["scores"][1][0] != 0


def test_the_cpu_default_is_fp32_and_another_dtype_can_be_asked_for(new_gpm, chat_tokenizer, tmp_path):
    save_gpm(new_gpm().bfloat16(), chat_tokenizer, tmp_path / "gpm")
    assert GPM.from_pretrained(tmp_path / "gpm", device="cpu").backend.model.dtype == torch.float32
    assert GPM.from_pretrained(tmp_path / "gpm", device="cpu", dtype="bfloat16").backend.model.dtype == torch.bfloat16
    assert GPM.from_pretrained(tmp_path / "gpm").backend.device.type == (
        "cuda" if torch.cuda.is_available() else "cpu"
    )


def test_gpm_is_the_packages_public_name():
    assert openrlhf_gpm.GPM is GPM
    with pytest.raises(AttributeError, match="no attribute 'GPX'"):
        _ = openrlhf_gpm.GPX


# Errors


def test_wrong_input_is_reported_with_its_group(gpm, chat_tokenizer, new_gpm):
    with pytest.raises(ValueError, match="group '0' has no responses"):
        gpm.score("Hello", [])
    with pytest.raises(ValueError, match="2 prompts but 1 responses"):
        gpm.embed(["a", "b"], ["c"])
    short = GPM(TorchBackend(new_gpm()), Formatter(chat_tokenizer, chat_template=True, max_len=12))
    with pytest.raises(ValueError, match=r"group 'q1': the prompt has .* no room"):
        list(short.score_groups(GROUPS))
    with pytest.raises(ValueError, match="finite must be one of refuse, nan; got 'maybe'"):
        list(gpm.score_groups(GROUPS, finite="maybe"))


def test_wrong_settings_and_a_wrong_layout_are_one_line(gpm_checkpoint):
    with pytest.raises(ValueError, match="--backend must be one of torch, vllm, url; got 'jax'"):
        GPM.from_pretrained(gpm_checkpoint, backend="jax")
    with pytest.raises(ValueError, match="--share_prompt must be one of auto, off; got 'on'"):
        GPM.from_pretrained(gpm_checkpoint, share_prompt="on")
    with pytest.raises(ValueError, match="--batch_tokens must be >= 1, got 0"):
        GPM.from_pretrained(gpm_checkpoint, batch_tokens=0)
    with pytest.raises(ValueError, match="is a GPM in its own layout: use `openrlhf-gpm convert --from gpm"):
        GPM.from_pretrained(gpm_checkpoint, backend="vllm")


def test_embeddings_that_are_not_finite_are_an_error_and_never_a_score(new_gpm, chat_tokenizer):
    model = new_gpm()
    model.score.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="group 'q1': the model's embeddings are not finite"):
        list(GPM(TorchBackend(model), Formatter(chat_tokenizer, chat_template=True)).score_groups(GROUPS))


def test_a_result_with_nan_keeps_the_scores_that_are_finite_and_nothing_that_needs_all():
    v = torch.tensor([[1.0, 0.0], [0.0, 1.0], [float("nan"), 0.0]])
    result = group_result(v, None, tau=0.5)
    assert not is_finite(result)
    assert result["scores"][0][:2] == [0, 2]
    assert torch.tensor(result["scores"])[2].isnan().all()
    assert {name for name, value in result.items() if value is None} == {
        *("gate", "mean_scores", "win_rates", "ranking", "von_neumann", "cyclic_share")
    }
    assert is_finite(group_result(v[:2], None, tau=0.5))


HEADS = {
    "embedding": {},
    "reward": {"head": "reward", "dim": 2, "gate": "none", "normalize": False},
    "pairwise": {"head": "pairwise", "dim": 2, "gate": "none", "normalize": False},
}


@pytest.mark.parametrize("head", HEADS)
def test_nan_spoils_the_comparisons_of_its_response_only(head, new_gpm, chat_tokenizer):
    """One token's embedding is NaN: so are the scores of the response that holds it; all others stay."""
    sound = new_gpm(**HEADS[head])
    gpm = GPM(TorchBackend(sound), Formatter.from_config(chat_tokenizer, sound.gpm_config))
    groups = [
        Group("Hello", ["Fine.", "No."]),
        Group("Name a prime.", ["7", "Z", "Two"]),
        Group("Hi", ["No.", "Fine."]),
    ]
    before = [torch.tensor(result["scores"]) for result in gpm.score_groups(groups)]
    token = chat_tokenizer("Z", add_special_tokens=False)["input_ids"][0]
    with torch.no_grad():
        sound.get_input_embeddings().weight[token] = torch.nan
    after = [torch.tensor(result["scores"]) for result in gpm.score_groups(groups, finite="nan")]
    assert torch.isnan(after[1][1]).sum() >= 2
    before[1][1, :] = before[1][:, 1] = after[1][1, :] = after[1][:, 1] = 0
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, atol=1e-5, rtol=0)


def test_a_checkpoint_without_a_tokenizer_is_an_error(new_gpm, tmp_path):
    new_gpm().save_pretrained(tmp_path)
    load_gpm(tmp_path)
    with pytest.raises(ValueError, match="holds no tokenizer"):
        open_checkpoint(tmp_path).formatter()


def test_one_text_is_not_taken_for_a_list_of_letters(gpm_checkpoint):
    gpm = GPM.from_pretrained(gpm_checkpoint)
    with pytest.raises(ValueError, match="responses must be a list of texts"):
        gpm.score("Name a stone.", "rock")
    with pytest.raises(ValueError, match="must be lists"):
        gpm.embed("ab", "cd")
    with pytest.raises(ValueError, match="a response must be a text, got 7"):
        gpm.score("Name a prime.", [7])
    with pytest.raises(ValueError, match="a prompt must be a text or a list of messages, got None"):
        gpm.score(None, ["7"])


@pytest.mark.parametrize("device", ["xpu", "meta", "mps"])
def test_devices_that_nobody_tried_are_refused(device):
    with pytest.raises(ValueError, match=f"--device {device} is not supported"):
        pick_device(device)
