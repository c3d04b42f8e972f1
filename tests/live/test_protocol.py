"""Messages: what is understood, what is refused, and that the page describing them is true."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest

from longlive.live import protocol
from longlive.live.protocol import (
    Back,
    ChangePrompt,
    Hello,
    PictureFlag,
    PictureHeader,
    PictureKind,
    ProtocolError,
    ScriptedPrompt,
    Start,
    pack_picture,
    parse_client,
    parse_server,
    to_json,
    unpack_picture,
)
from longlive.rollout.transitions import Transition

PAGE = Path(__file__).parents[2] / "docs" / "live-protocol.md"
CLIENT = {kind.type: kind for kind in get_args(protocol.ClientMessage)}
SERVER = {kind.type: kind for kind in get_args(protocol.ServerMessage)}


def examples() -> list[dict]:
    """Every message that the page shows."""
    found, decoder = [], json.JSONDecoder()
    for block in re.findall(r"```json\n(.*?)```", PAGE.read_text(), re.DOTALL):
        text = block.strip()
        while text:
            message, end = decoder.raw_decode(text)
            found.append(message)
            text = text[end:].strip()
    return found


@pytest.mark.parametrize("example", examples(), ids=lambda example: example["type"])
def test_every_example_of_the_page_is_a_message(example):
    is_client = example["type"] in CLIENT
    text = json.dumps(example)
    message = parse_client(text) if is_client else parse_server(text)
    assert holds(json.loads(to_json(message)), example)


def holds(found: object, example: object) -> bool:
    """Whether everything in an example was found; defaults may have joined it."""
    if isinstance(example, dict):
        return all(holds(found[key], value) for key, value in example.items())
    if isinstance(example, list):
        return all(holds(*pair) for pair in zip(found, example, strict=True))
    return found == example


def test_the_page_shows_every_message_with_all_that_the_server_says():
    shown = {example["type"]: example for example in examples()}
    assert set(shown) == {*CLIENT, *SERVER}
    for name, kind in SERVER.items():
        assert set(shown[name]) == {"type", *(field.name for field in fields(kind))}, name


def test_the_page_lists_every_error_code():
    table = set(re.findall(r"^\| `(\w+)` \| ", PAGE.read_text(), re.MULTILINE))
    named = set(re.findall(r"``(\w+)``", protocol.Error.__doc__ or ""))
    assert named <= table


def test_messages_survive_the_wire():
    start = Start(
        3,
        "a ☃ 'quoted' prompt",
        seed=7,
        transition=Transition("blend", 4),
        script=(ScriptedPrompt(2, "b"), ScriptedPrompt(5, "c", Transition("cut"))),
    )
    assert parse_client(to_json(start)) == start
    back = Back(4, 1, 6, prompt="d", seed=1, play=False)
    assert parse_client(to_json(back)) == back
    assert parse_client(to_json(Hello(1, ("mse", "jpeg")))) == Hello(1, ("mse", "jpeg"))


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("", "bad_message", "not JSON"),
        ("{", "bad_message", "not JSON"),
        ("[" * 100_000, "bad_message", "not JSON"),
        ("9" * 10_000, "bad_message", "not JSON"),
        ("[]", "bad_message", "a JSON object with a type"),
        ("null", "bad_message", "a JSON object with a type"),
        ("{}", "bad_message", "unknown type of message None"),
        ('{"type": "eval"}', "bad_message", "unknown type of message 'eval'; it can be back"),
        ('{"type": ["start"]}', "bad_message", "unknown type"),
        ('{"type": "welcome"}', "bad_message", "unknown type"),
        ('{"type": "pause"}', "bad_message", "pause needs id"),
        ('{"type": "pause", "id": "1"}', "bad_message", "pause.id must be a whole number"),
        ('{"type": "pause", "id": true}', "bad_message", "must be a whole number, got True"),
        ('{"type": "pause", "id": 1.0}', "bad_message", "must be a whole number"),
        ('{"type": "pause", "id": NaN}', "bad_message", "must be a whole number"),
        ('{"type": "pause", "id": 0}', "bad_value", "pause.id goes from 1 to"),
        ('{"type": "pause", "id": 2147483648}', "bad_value", "goes from 1 to 2147483647"),
        ('{"type": "pause", "id": 1, "x": 2}', "bad_message", "unknown key 'x'"),
        ('{"type": "prompt", "id": 1}', "bad_message", "prompt needs prompt"),
        ('{"type": "prompt", "id": 1, "prompt": 5}', "bad_message", "must be a text"),
        ('{"type": "prompt", "id": 1, "prompt": " "}', "bad_value", "the prompt is empty"),
        (
            json.dumps({"type": "prompt", "id": 1, "prompt": "a" * 2001}),
            "prompt_too_long",
            "has 2001 characters; 2000 are the most",
        ),
        (
            '{"type": "prompt", "id": 1, "prompt": "a", "transition": {"kind": "fade"}}',
            "bad_message",
            "kind must be one of switch, blend, cut",
        ),
        (
            '{"type": "prompt", "id": 1, "prompt": "a", "transition": "cut"}',
            "bad_message",
            "must be an object",
        ),
        (
            '{"type": "prompt", "id": 1, "prompt": "a", '
            '"transition": {"kind": "blend", "blocks": 99}}',
            "bad_value",
            "use 1 to 64",
        ),
        ('{"type": "hello", "version": 1, "transports": "jpeg"}', "bad_message", "must be a list"),
        (
            '{"type": "hello", "version": 1, "transports": ["rtp"]}',
            "bad_message",
            "one of webcodecs, mse, jpeg",
        ),
        (
            json.dumps({"type": "hello", "version": 1, "transports": ["jpeg"] * 300}),
            "bad_value",
            "more than 256 entries",
        ),
        ('{"type": "start", "id": 1, "prompt": "a", "seed": -1}', "bad_value", "start.seed goes"),
        ('{"type": "start", "id": 1, "prompt": "a", "steps": 0}', "bad_value", "start.steps goes"),
        (
            '{"type": "start", "id": 1, "prompt": "a", "script": [{"block": 1}]}',
            "bad_message",
            "start.script needs prompt",
        ),
        ('{"type": "back", "id": 1, "branch": -1, "block": 0}', "bad_value", "back.branch goes"),
        ('{"type": "shown", "serial": 4294967296}', "bad_value", "shown.serial goes"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_plain_line(text, code, message):
    with pytest.raises(ProtocolError) as caught:
        parse_client(text)
    assert caught.value.code == code
    assert message in str(caught.value)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_a_newer_server_may_say_more():
    assert parse_server('{"type": "ended", "reason": "idle", "message": "x", "since": 3}')


def test_a_picture_has_the_documented_32_bytes_before_it():
    header = PictureHeader(
        kind=PictureKind.JPEG,
        flags=PictureFlag.KEY | PictureFlag.JUMP,
        serial=1,
        branch=2,
        block=3,
        frame=4,
        prompt=5,
        time_us=2**40 + 6,
    )
    data = pack_picture(header, b"picture")
    assert data[:4] == bytes([1, 3, 5, 0])
    numbers = [int.from_bytes(data[at : at + 4], "little") for at in range(4, 24, 4)]
    assert numbers == [1, 2, 3, 4, 5]
    assert int.from_bytes(data[24:32], "little") == 2**40 + 6
    assert unpack_picture(data) == (header, b"picture")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "shorter than its header"),
        (b"\1" * 31, "shorter than its header"),
        (b"\2" + bytes(31), "pictures of version 2"),
        (b"\1\11" + bytes(30), "unknown kind of picture 9"),
    ],
)
def test_a_broken_picture_is_refused(data, message):
    with pytest.raises(ProtocolError, match=message):
        unpack_picture(data)


def test_a_change_of_prompt_without_a_transition_leaves_it_to_the_video():
    assert parse_client('{"type": "prompt", "id": 1, "prompt": "a"}') == ChangePrompt(1, "a", None)
