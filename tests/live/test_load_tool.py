"""The load tool, against a server of the nano model."""

import json

import load
import pytest
from live_server import serving

A, B = "a large red circle", "a small blue square"


def test_two_viewers_in_turn_are_measured(play, tmp_path, capsys):
    played = play()
    output = tmp_path / "results" / "load.json"
    with serving(played.engine, tmp_path, samples=(A, B)) as server:
        command = ["--address", server.address, "--viewers", "2", "--seconds", "2"]
        code = load.main([*command, "--prompt-every", "0.4", "--output", str(output)])
    assert code == 0
    lines = capsys.readouterr().out.splitlines()
    report = json.loads(lines[-1])
    assert json.loads(output.read_text()) == report
    assert len(report["viewers"]) == 2
    for viewer in report["viewers"]:
        assert viewer["frames"] >= 20
        assert 8 < viewer["fps"] <= 17
        assert viewer["prompt_to_pixel_ms"]["count"] >= 1
        assert viewer["ack_ms"]["count"] >= 2
        assert viewer["ack_ms"]["p50"] < viewer["prompt_to_pixel_ms"]["p50"]
        assert viewer["server"]["encode_ms"] > 0


@pytest.mark.parametrize("args", [["--viewers", "0"], ["--seconds", "0"], ["--prompt-every", "-1"]])
def test_bad_numbers_are_refused(args, capsys):
    assert load.main(args) == 2
    assert "must be positive" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_line(capsys):
    assert load.main(["--address", "ws://127.0.0.1:9"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
