"""Wrong flags are one line, before a port is open or a model is loaded."""

import socket

import pytest

from openrlhf_gpm.cli import main as cli
from openrlhf_gpm.serving.access import check_host, is_allowed, read_keys


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--host", "0.0.0.0"],
            "--host 0.0.0.0 can be reached from other machines: give --api-key-file, or --no-auth",
        ),
        (["--host", "gpu-7"], "--host gpu-7 can be reached from other machines"),
        (["--api-key-file", "none"], "--api-key-file none is not a file"),
        (["--group_size", "1"], "--group_size must be 2 to 64"),
        (["--group_size", "65"], "--group_size must be 2 to 64 (--max_responses)"),
        (["--deadline", "0"], "--deadline must be a number of seconds > 0"),
        (["--deadline", "nan"], "--deadline must be a number of seconds > 0"),
        (["--max_groups", "0"], "--max_groups must be >= 1"),
        (["--max_responses", "1"], "--max_responses 1 leaves nothing to compare"),
        (["--max_body_mb", "2000"], "--max_bodies_mb 1024 is less than --max_body_mb 2000"),
        (["--max_queue_tokens", "10"], "--max_queue_tokens 10 is less than --max_tokens"),
        (["--batch_tokens", "0"], "--batch_tokens must be >= 1"),
        (["--port", "99999"], "--port must be 0 to 65535, got 99999"),
    ],
)
def test_a_wrong_flag_is_one_line_that_names_it(flags, message, gpm_checkpoint, capsys):
    assert cli.main(["serve", "--model", str(gpm_checkpoint), "--device", "cpu", *flags]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {message}")
    assert len(err.splitlines()) == 1


def test_a_port_in_use_and_a_folder_without_a_model_are_told_at_once(gpm_checkpoint, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["serve", "--model", str(gpm_checkpoint), "--device", "cpu", "--port", port]) == 2
    assert f"--port {port}" in capsys.readouterr().err
    assert cli.main(["serve", "--model", str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_error(gpm_checkpoint, tmp_path, start):
    for file in gpm_checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    served = start("--model", str(tmp_path))
    assert served.process.wait(300) == 2
    lines = served.log.read_text().splitlines()
    assert lines[-1].startswith("error: ")
    assert "model.safetensors" in lines[-1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n \n", "holds no key"),
        ("long-enough-to-be-a-key\nshort\n", "5 characters"),
        ("ключ-от-сервера-gpm", "ASCII"),
    ],
)
def test_a_key_file_without_a_safe_key_is_refused(content, message, tmp_path):
    file = tmp_path / "keys"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_keys(file)


def test_only_this_machine_needs_no_key_and_no_auth_is_said_aloud():
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        assert check_host(host, has_keys=False, no_auth=False) is None
    assert check_host("0.0.0.0", has_keys=True, no_auth=False) is None
    assert "everybody who reaches :: can use this server" in str(check_host("::", has_keys=False, no_auth=True))
    with pytest.raises(ValueError, match="exclude each other"):
        check_host("0.0.0.0", has_keys=True, no_auth=True)


def test_a_key_must_match_as_a_whole():
    keys = ["a-key-of-some-length", "another-key-of-some-length"]
    assert is_allowed("Bearer another-key-of-some-length", keys)
    assert is_allowed("bearer a-key-of-some-length", keys)
    for wrong in (None, "", "Bearer", "Bearer ", "Bearer a-key", "Digest a-key-of-some-length", "Basic w6Q="):
        assert not is_allowed(wrong, keys)
