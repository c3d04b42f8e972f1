"""Downloads against a hub on this machine: resumed, checked, and explained when they fail."""

import logging
import shutil
import time
from pathlib import Path

import pytest

from longlive.errors import UserError
from longlive.weights.hub import DOWNLOADS, download
from longlive.weights.layouts import COMPONENTS, locate

LONGLIVE, WAN = "Efficient-Large-Model/LongLive-1.3B", "Wan-AI/Wan2.1-T2V-1.3B"
LARGE = bytes(range(256)) * 40
TOKENIZER = "google/umt5-xxl/tokenizer.json"


@pytest.fixture
def hub(fake_hub):
    fake_hub.files = {
        LONGLIVE: {
            "models/longlive_base.pt": LARGE,
            "models/lora.pt": LARGE[::-1],
            "README.md": b"a card",
        },
        WAN: {
            "config.json": b'{"dim": 1536}',
            "Wan2.1_VAE.pth": b"vae" * 500,
            "models_t5_umt5-xxl-enc-bf16.pth": b"t5" * 900,
            "diffusion_pytorch_model.safetensors": b"dit" * 700,
            TOKENIZER: b"{}",
            "google/umt5-xxl/spiece.model": b"pieces" * 30,
            "assets/logo.png": b"picture",
        },
        "Wan-AI/Wan2.1-T2V-14B": {
            "config.json": b"{}",
            "diffusion_pytorch_model.safetensors.index.json": b"{}",
            "diffusion_pytorch_model-00001-of-00001.safetensors": b"big" * 100,
        },
    }
    return fake_hub


def fetch(hub, folder: Path, name: str = "longlive-1.3b", **options) -> list[Path]:
    return download(name, folder, endpoint=hub.url, **options)


def failing(hub, folder: Path, **options) -> str:
    with pytest.raises(UserError) as error:
        fetch(hub, folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_model_arrives_whole_in_the_publishers_folders_and_nothing_else_does(hub, tmp_path):
    paths = fetch(hub, tmp_path / "models")
    assert [path.relative_to(tmp_path / "models").as_posix() for path in paths] == [
        "LongLive-1.3B/models/longlive_base.pt",
        "LongLive-1.3B/models/lora.pt",
        "Wan2.1-T2V-1.3B/config.json",
        "Wan2.1-T2V-1.3B/Wan2.1_VAE.pth",
        "Wan2.1-T2V-1.3B/models_t5_umt5-xxl-enc-bf16.pth",
        f"Wan2.1-T2V-1.3B/{TOKENIZER}",
        "Wan2.1-T2V-1.3B/google/umt5-xxl/spiece.model",
    ]
    assert paths[0].read_bytes() == LARGE
    assert not hub.asked("GET", "logo.png")
    assert not hub.asked("GET", "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    "component", [name for name, c in COMPONENTS.items() if "longlive download" in c.fetch]
)
def test_the_command_that_a_message_names_brings_what_was_missing(hub, tmp_path, component):
    order = COMPONENTS[component].fetch
    with pytest.raises(UserError) as missing:
        locate([component], tmp_path)
    assert order in str(missing.value)
    fetch(hub, tmp_path, order.split()[-1].strip("`"))
    locate([component], tmp_path)


def test_what_is_there_and_whole_is_not_fetched_again(hub, tmp_path):
    first = fetch(hub, tmp_path)
    hub.requests.clear()
    assert fetch(hub, tmp_path) == first
    assert all(path.startswith("/api/") for _, path, _ in hub.requests)


def test_a_file_copied_by_hand_counts_if_it_is_whole(hub, tmp_path):
    place = tmp_path / "LongLive-1.3B/models/longlive_base.pt"
    place.parent.mkdir(parents=True)
    place.write_bytes(LARGE)
    fetch(hub, tmp_path)
    assert not hub.asked("GET", "longlive_base.pt")


def test_a_transfer_that_breaks_off_is_taken_up_where_it_broke(hub, tmp_path):
    hub.cut_after = 4500
    first, *_ = fetch(hub, tmp_path)
    assert first.read_bytes() == LARGE
    ranges = [asked for _, _, asked in hub.asked("GET", "longlive_base.pt")]
    assert ranges == [None, "bytes=4000-"]  # whole pieces of 1000 were kept


@pytest.mark.parametrize("name", ["LongLive-1.3B/models/lora.pt", f"Wan2.1-T2V-1.3B/{TOKENIZER}"])
def test_a_file_that_changed_on_disk_is_replaced(hub, tmp_path, name):
    fetch(hub, tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes(b"x" * len(whole))
    fetch(hub, tmp_path)
    assert path.read_bytes() == whole


def test_content_damaged_once_is_fetched_again(hub, tmp_path, caplog):
    hub.corrupt = 1
    with caplog.at_level(logging.WARNING, "longlive"):
        first, *_ = fetch(hub, tmp_path)
    assert first.read_bytes() == LARGE
    assert "longlive_base.pt arrived damaged: SHA-256" in caplog.text


def test_content_damaged_twice_is_an_error_and_is_not_left_behind(hub, tmp_path):
    hub.corrupt = 2
    message = failing(hub, tmp_path)
    assert "longlive_base.pt" in message
    assert "arrived damaged twice (SHA-256" in message
    assert not (tmp_path / "LongLive-1.3B/models/longlive_base.pt").exists()


def test_a_file_in_the_clients_cache_is_copied_unless_it_is_damaged(hub, tmp_path):
    snapshot = tmp_path / "hub-cache" / f"models--{LONGLIVE.replace('/', '--')}" / "snapshots"
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = snapshot / commit / "models" / "longlive_base.pt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(LARGE)
    fetch(hub, tmp_path / "a")
    assert not hub.asked("GET", "longlive_base.pt")
    cached.write_bytes(LARGE[:-1] + b"?")
    first, *_ = fetch(hub, tmp_path / "b")
    assert first.read_bytes() == LARGE
    assert len(hub.asked("GET", "longlive_base.pt")) == 1


def test_all_files_are_of_the_commit_that_the_branch_pointed_to_at_the_start(hub, tmp_path):
    fetch(hub, tmp_path)
    fetched = [path for _, path, _ in hub.requests if "/resolve/" in path]
    assert len(fetched) >= 14  # a question and a transfer for each of seven files
    assert all("/resolve/0123456789abcdef" in path for path in fetched)


def test_the_revision_is_that_of_the_first_repository(hub, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    fetch(hub, tmp_path, revision=commit)
    asked = [path.rpartition("/")[2] for _, path, _ in hub.requests if path.startswith("/api/")]
    assert asked == [commit, "main"]
    assert "has no revision v9" in failing(hub, tmp_path, revision="v9")


def test_a_hub_out_of_reach_is_told_at_once_and_not_after_half_a_minute(tmp_path, fake_hub):
    start = time.monotonic()
    with pytest.raises(UserError) as error:
        download("longlive-1.3b", tmp_path, endpoint="http://127.0.0.1:9")
    assert time.monotonic() - start < 3
    assert "cannot reach http://127.0.0.1:9" in str(error.value)
    assert "missing in" in str(error.value)
    assert "models/longlive_base.pt, models/lora.pt" in str(error.value)


def test_offline_mode_is_named_as_the_reason(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = failing(hub, tmp_path)
    assert "HF_HUB_OFFLINE is set" in message
    assert "missing in" in message
    assert not hub.requests


def test_offline_with_everything_there_works_and_says_it_was_not_checked(
    hub, tmp_path, monkeypatch, caplog
):
    online = fetch(hub, tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with caplog.at_level(logging.WARNING, "longlive"):
        assert set(fetch(hub, tmp_path)) == set(online)
    assert "used unchecked" in caplog.text


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (403, "GatedRepo", "wants its terms accepted"),
        (401, "RepoNotFound", "or it is private"),
        (503, "", "answered 503 while asking for its files of"),
    ],
)
def test_refusals_say_what_to_do(hub, tmp_path, status, code, expected):
    fetch(hub, tmp_path)
    hub.status, hub.error_code = status, code
    # Even with the files there: the hub gave an answer, so this is not a missing network.
    assert expected in failing(hub, tmp_path)


def test_an_absent_repository_and_an_absent_file_are_told_apart(hub, tmp_path):
    del hub.files[LONGLIVE]["models/lora.pt"]
    assert "LongLive-1.3B at main has no models/lora.pt" in failing(hub, tmp_path)
    del hub.files[LONGLIVE]
    assert f"there is no {LONGLIVE} at {hub.url}" in failing(hub, tmp_path)


def test_a_full_disk_is_noticed_before_the_first_byte(hub, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    message = failing(hub, tmp_path / "not" / "yet")
    assert "needs 20 kB" in message
    assert "1 kB are free" in message
    assert not hub.asked("GET", ".pt")


def test_a_folder_that_cannot_be_written_is_named(hub, tmp_path):
    (tmp_path / "LongLive-1.3B").write_text("a file where the folder should be")
    assert f"cannot write to {tmp_path / 'LongLive-1.3B'}" in failing(hub, tmp_path)


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=", ".join(DOWNLOADS)):
        download("longlive", tmp_path)
