"""A score depends on the pair alone: not on siblings, batches, paths, the clock or the letters at a seam."""

import json
from types import SimpleNamespace

import pytest
import torch
from field_tokenizers import TEMPLATES as FAMILIES
from openrlhf.cli import train_ppo_ray
from openrlhf.trainer.ppo_utils.experience import Experience

from openrlhf_gpm.checkpoints.checkpoint import open_checkpoint, save_gpm
from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.scoring.scorer import GPM
from openrlhf_gpm.trainer.policy.experience_maker import GroupExperienceMaker
from openrlhf_gpm.trainer.policy.reward_actor import BaseGPMRewardActor

TURN = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
TEMPLATES = {
    "chatml": FAMILIES["chatml"],
    "opens think": TURN + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}",
    "drops think": TURN.replace("m['content']", "m['content'].split('</think>')[-1] | trim")
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "writes an empty think": TURN.replace(
        "m['content'] +",
        "(('<think>\n\n</think>\n\n' if m['role'] == 'assistant' and 'think' not in m['content'] else '')"
        " + m['content']) +",
    )
    + "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "letters at the seam": "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'The capital of Fr' }}{% endif %}",
    "turns": "{{ bos_token }}{% for m in messages %}{{ '<turn>' + m['role'] + '\n' + m['content'] + '</turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}",
    "plain": None,
}
PROMPT = "Is 9 a prime?"
RESPONSES = [
    "No.",
    "Yes.",
    "<think>\nIt is odd.\n</think>\nYes.",
    "ance it is.",
    "\n\nNo",
    "No.<|im_end|>\nYes",
    "No.",
]


@pytest.fixture(params=TEMPLATES)
def folder(request, new_gpm, new_tokenizer, tmp_path):
    """The directory of a GPM with one of the templates."""
    template = TEMPLATES[request.param]
    save_gpm(new_gpm(chat_template=template is not None), new_tokenizer(template), tmp_path / "gpm")
    return tmp_path / "gpm"


def close(found, want):
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(want), atol=1e-5, rtol=0)


def looped(folder, tokenizer, responses, parts):
    """Scores (K, K) of a group as the Ray loop makes them: `parts` are the micro-batches that the actors get."""
    args = train_ppo_ray.parse_args(
        [
            *("--reward_model_type", "gpm", "--reward.model_name_or_path", str(folder)),
            *("--actor.model_name_or_path", "policy", "--actor.policy_loss_type", "gpo", "--algo.kl.init_coef", "0"),
            *("--rollout.n_samples_per_prompt", str(len(responses)), "--rollout.batch_size", "1"),
            *("--train.batch_size", str(len(responses)), "--train.micro_batch_size", "1"),
            *("--actor.num_gpus_per_node", "1"),
        ]
    )
    maker = GroupExperienceMaker(None, None, None, None, None, SimpleNamespace(args=args), tokenizer=tokenizer)
    checkpoint = open_checkpoint(folder)
    actor = object.__new__(BaseGPMRewardActor)
    gpm = GPM.from_pretrained(folder, device="cpu")
    actor.model, actor.config, actor.formatter = gpm.backend.model, gpm.config, checkpoint.formatter()
    actor.share_prompt = True
    batches = []
    for part in parts:
        ids = [[*tokenizer(responses[i], add_special_tokens=False)["input_ids"], 1] for i in part]
        width = max(map(len, ids))
        experience = Experience(
            index=list(part),
            sequences=torch.tensor([[0, *row, *[2] * (width - len(row))] for row in ids]),
            attention_mask=torch.ones(len(part), width + 1, dtype=torch.long),
            action_mask=torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids]),
            action_log_probs=torch.zeros(len(part), width),
            labels=[PROMPT] * len(part),
            info={},
        )
        batches.append(experience)
    inputs = maker.reward_inputs(batches)
    with torch.no_grad():
        for experience, prompts, texts in zip(batches, inputs["prompts"], inputs["responses"], strict=True):
            experience.rewards = actor.forward(prompts, texts)
    seen = {}
    object.__setattr__(maker, "objective", _Spy(maker.objective, lambda groups: seen.update(groups=groups)))
    maker.compute_advantages_and_returns(batches)
    return seen["groups"].scores[0], maker.statistics, inputs["responses"]


class _Spy:
    """An objective that shows the groups that it is given."""

    def __init__(self, objective, show):
        self._objective, self._show = objective, show

    def __getattr__(self, name):
        return getattr(self._objective, name)

    def prepare(self, groups, *rest, **named):
        self._show(groups)
        return self._objective.prepare(groups, *rest, **named)


def test_a_pair_scores_the_same_alone_in_a_group_in_eval_and_in_the_loop(folder, new_tokenizer, tmp_path):
    gpm = GPM.from_pretrained(folder, device="cpu")
    group = gpm.scores(PROMPT, RESPONSES)
    K = len(RESPONSES)
    pairs = [(i, j) for i in range(K) for j in range(i)]
    for i, j in pairs:
        close(gpm.scores(PROMPT, [RESPONSES[i], RESPONSES[j]])[0, 1], group[i, j])
    _, gate = gpm.embed([PROMPT] * K, RESPONSES)
    close(gate, gate[:1].expand_as(gate))

    for parts in ([range(K)], [range(3), range(3, K)], [[i] for i in reversed(range(K))]):
        scores, statistics, texts = looped(folder, new_tokenizer(None), RESPONSES, parts)
        close(scores, group)
        assert scores[0, K - 1] == 0.0  # the same text, whichever micro-batches it came in
        assert statistics["rollout/control_text"] == pytest.approx(1 / K)
    assert texts[-6] == [RESPONSES[5]]  # specials are spelled out

    lines = [{"prompt": PROMPT, "chosen": RESPONSES[0], "rejected": RESPONSES[1]}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["eval", "--model", str(folder), "--data", f"{tmp_path}/pairs.jsonl", "--output", f"{tmp_path}/out"]
    assert cli.main([*command, "--device", "cpu", "--no_plots"]) == 0
    (file,) = (tmp_path / "out" / "scores").glob("*.jsonl")
    line = json.loads(file.read_text())
    close(line["scores"][0][1], group[0, 1])


def test_the_gate_is_that_of_the_prompt_rendered_alone(folder, new_gpm):
    gpm = GPM.from_pretrained(folder, device="cpu")
    formatter = gpm.formatter
    text = formatter.render(PROMPT, "")[0]
    alone = [0, *(i for i in formatter.tokenizer(text, add_special_tokens=False)["input_ids"] if i != 0)]
    for response in RESPONSES:
        sample = formatter.encode(PROMPT, response)
        assert sample.input_ids[: sample.prompt_len] == alone
    _, gate = gpm.backend.model(torch.tensor([alone]), prompt_lens=torch.tensor([len(alone)]))
    close(gpm.score(PROMPT, RESPONSES[:2])["gate"], gate[0])


def test_a_template_that_asks_for_the_day_is_told_that_of_the_checkpoint(new_gpm, new_tokenizer, tmp_path):
    dated = (
        "{{ '<|im_start|>system\nIt is ' + strftime_now('%d %b %Y %H:%M:%S') + '.<|im_end|>\n' }}" + FAMILIES["chatml"]
    )
    save_gpm(new_gpm(), new_tokenizer(dated), tmp_path / "gpm")
    formatter = open_checkpoint(tmp_path / "gpm").formatter()
    text = formatter.tokenizer.decode(formatter.encode(PROMPT, "No.").input_ids)
    assert "It is 26 Jul 2024 00:00:00." in text
    save_gpm(new_gpm(today="2030-01-02"), new_tokenizer(dated), tmp_path / "later")
    assert "It is 02 Jan 2030" in open_checkpoint(tmp_path / "later").formatter().render(PROMPT, "No.")[0]
    with pytest.raises(ValueError, match=r"gpm.today.*must be a day such as 2024-07-26, got 'now'"):
        new_gpm(today="now")


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("options", [{}, {"share_prompt": "off"}, {"batch_tokens": 64}])
def test_equal_responses_tie_exactly(gpm_checkpoint, size, options):
    gpm = GPM.from_pretrained(gpm_checkpoint, device="cpu", **options)
    for text in ("Seven is a prime.", "", "x" * 50):
        result = gpm.score("Name a prime.", [text] * size)
        assert result["scores"] == [[0.0] * size] * size
        assert result["ranking"] == list(range(size))
        assert result["von_neumann"] == pytest.approx([1 / size] * size, abs=1e-6)
        assert result["cyclic_share"] == 0.0
    mixed = torch.tensor(gpm.score("Name a prime.", ["Seven.", "Nine.", "Seven."])["scores"])
    assert mixed[0, 2] == 0.0
    assert mixed[0, 1] == mixed[2, 1] != 0.0
