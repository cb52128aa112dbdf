"""Shards: where a file is cut, and that lines come in order and once, whoever scores which shard when."""

import json

import pyarrow.parquet
import pytest

from openrlhf_gpm.checkpoints.checkpoint import open_checkpoint
from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.cli.score import check_groups, score_file, to_lines, waiting_folder
from openrlhf_gpm.data import Group
from openrlhf_gpm.scoring.scorer import GPM
from openrlhf_gpm.scoring.shards import Shard, Waiting, in_order, missing, parts

GROUPS = [
    Group("Name a prime.", ["Seven.", "Nine. " * (i % 5 + 1), "7"], f"q{i}" if i % 2 else None) for i in range(30)
]
SHARDS = [Shard(0, 2), Shard(2, 3), Shard(3, 6)]
LINES = [json.dumps({"id": i}) for i in range(6)]
BATCH_TOKENS = 16  # about 3 groups per shard


def lines_of(shard: Shard) -> list[str]:
    return LINES[shard.start : shard.stop]


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "in.jsonl"
    rows = ({"id": g.id, "prompt": g.prompt, "responses": g.responses} for g in GROUPS)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def shards(source, gpm_checkpoint):
    return check_groups([source], open_checkpoint(gpm_checkpoint), 10, BATCH_TOKENS)


@pytest.fixture
def job(source, gpm_checkpoint, tmp_path):
    words = ["score", "--model", gpm_checkpoint, "--input", source, "--output", tmp_path / "out.jsonl"]
    return [*map(str, words), "--device", "cpu", "--batch_tokens", str(BATCH_TOKENS)]


@pytest.fixture
def score(job, tmp_path):
    """Runs `score` in this process -> the lines of its output."""

    def run() -> list[str]:
        assert cli.main(job) == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]
        return (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]

    return run


def test_shards_hold_every_group_once_in_order(shards):
    assert len(shards) > 4
    assert [i for shard in shards for i in range(shard.start, shard.stop)] == list(range(len(GROUPS)))


def test_shards_are_what_the_scorer_makes_batches_of(shards, gpm_checkpoint):
    """So a file by shards has the bytes of a file at once; groups cut elsewhere would be rounded otherwise."""
    seen = []
    gpm = GPM.from_pretrained(gpm_checkpoint, device="cpu", batch_tokens=BATCH_TOKENS)
    embed = gpm.backend.embed_groups
    gpm.backend.embed_groups = lambda groups: (seen.append(len(groups)), embed(groups))[1]
    at_once = list(to_lines(gpm, GROUPS, 0))
    assert seen == [shard.size for shard in shards]
    by_shard = [line for shard, groups in parts(GROUPS, shards) for line in to_lines(gpm, groups, shard.start)]
    assert by_shard == at_once


def test_parts_reads_no_further_than_asked_for():
    read = []
    groups = (read.append(i) or i for i in range(100))
    walk = parts(groups, [Shard(2, 4), Shard(7, 9), Shard(50, 90)])
    assert next(walk) == (Shard(2, 4), [2, 3])
    assert next(walk) == (Shard(7, 9), [7, 8])
    assert read == list(range(9))


def test_several_files_of_any_format_are_one(job, score, source, tmp_path):
    whole, rows = score(), [json.loads(line) for line in source.read_text().splitlines()]
    (tmp_path / "a").mkdir()
    source.rename(tmp_path / "a" / "in.jsonl")
    first, second = tmp_path / "in.jsonl", tmp_path / "a" / "rest.parquet"
    first.write_text("".join(json.dumps(row) + "\n" for row in rows[:11]))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows[11:]), second)
    (tmp_path / "out.jsonl").unlink()
    assert cli.main([*job, "--input", str(first), str(second)]) == 0
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1] == whole


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (2, 0, 1)])
@pytest.mark.parametrize("done", [0, 1, 2, 4])
def test_lines_come_in_order_and_once_whichever_shard_is_done_first(tmp_path, order, done):
    waiting, counts = Waiting(tmp_path / "waiting"), []
    todo = missing(SHARDS, done, waiting)
    results = ((SHARDS[i], lines_of(SHARDS[i])) for i in order if SHARDS[i] in todo)
    assert list(in_order(SHARDS, done, waiting, results, counts.append)) == LINES[done:]
    assert sum(counts) == len(LINES) - done
    assert not list(tmp_path.rglob("*.jsonl"))


def test_what_waits_is_kept_when_a_run_ends_and_not_scored_again(tmp_path):
    waiting = Waiting(tmp_path / "waiting")
    lines = in_order(SHARDS, 0, waiting, iter([(SHARDS[2], lines_of(SHARDS[2]))]), lambda _: None)
    with pytest.raises(RuntimeError):  # no more results: the run has been stopped
        next(lines)
    assert missing(SHARDS, 0, waiting) == SHARDS[:2]
    assert list(in_order(SHARDS, 0, waiting, ((s, lines_of(s)) for s in SHARDS[:2]), lambda _: None)) == LINES


@pytest.mark.parametrize("content", [b"", b'{"id": 2}\n{"id": 3}\n', b"\0" * 30, b'{"id": 2}'])
def test_a_waiting_file_that_is_not_whole_is_scored_again(tmp_path, content):
    waiting = Waiting(tmp_path)
    waiting.put(SHARDS[1], lines_of(SHARDS[1]))
    assert missing(SHARDS, 0, waiting) == [SHARDS[0], SHARDS[2]]
    next(tmp_path.iterdir()).write_bytes(content)
    assert missing(SHARDS, 0, waiting) == SHARDS


def test_only_what_we_wrote_is_cleared(tmp_path):
    waiting = Waiting(tmp_path / "waiting")
    waiting.clear()
    waiting.put(SHARDS[1], lines_of(SHARDS[1]))
    (waiting.folder / ".3-6.jsonl.new-7-0123abcd").write_text("half")  # of a run that was killed
    (waiting.folder / "theirs.txt").write_text("mine")
    waiting.clear()
    assert [file.name for file in waiting.folder.iterdir()] == ["theirs.txt"]
    (waiting.folder / "theirs.txt").unlink()
    waiting.clear()
    assert not waiting.folder.exists()


def test_a_text_with_line_separators_waits_as_it_is(tmp_path):
    waiting, line = Waiting(tmp_path), json.dumps({"id": "a\u2028b\x85c"}, ensure_ascii=False)
    waiting.put(SHARDS[1], [line])
    assert waiting.lines(SHARDS[1]) == [line]


def test_a_run_that_goes_on_scores_what_is_missing_to_the_bytes_of_one_that_was_not_stopped(
    job, score, shards, gpm_checkpoint, tmp_path, capsys
):
    """It was stopped within a shard, and a later shard was waiting; what it left is marked."""
    whole = score()
    assert [json.loads(line)["id"] for line in whole] == [g.id or str(i) for i, g in enumerate(GROUPS)]
    written, waits = shards[2].start + 1, shards[4]
    kept = {*range(written), *range(waits.start, waits.stop)}
    expected = [json.dumps(json.loads(line) | {"id": "kept"}) if i in kept else line for i, line in enumerate(whole)]
    out = tmp_path / "out.jsonl"
    args = cli.build_parser(["score"]).parse_args(job)
    score_file(args, open_checkpoint(gpm_checkpoint), out, "cpu").resume()  # writes the key
    out.with_name("out.jsonl.partial").write_text("".join(f"{line}\n" for line in expected[:written]))
    Waiting(waiting_folder(out)).put(waits, expected[waits.start : waits.stop])
    assert score() == expected
    assert f"{len(kept)} of {len(GROUPS)} groups are done" in capsys.readouterr().err


def test_what_waits_for_a_deleted_partial_is_not_taken(score, shards, tmp_path):
    whole = score()
    Waiting(waiting_folder(tmp_path / "out.jsonl")).put(shards[1], whole[:1] * shards[1].size)
    assert score() == whole
