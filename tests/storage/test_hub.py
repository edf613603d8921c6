"""Names on the hub, adapters from it and folders to it; no test reaches it."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import errors

import tiny_adapters
import tiny_bases
from cli_commands import TINY
from tara.adapters.adapter import load_adapter
from tara.adapters.formats.locating import lora_file
from tara.cli import main
from tara.errors import TaraError
from tara.families.base import Base
from tara.inference.active_adapter import parse_adapter
from tara.inference.provenance import read_provenance
from tara.storage.hub import is_repository, not_fetched, repository_name, upload, with_owner


class Hub:
    """A hub that gives out the files of a folder for each repository, and remembers what it was asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.asked = folder, list[str]()
        monkeypatch.setattr("huggingface_hub.list_repo_files", self.names)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", self.file)

    def names(self, repository: str) -> Sequence[str]:
        return [path.name for path in (self.folder / repository).iterdir()]

    def file(self, repository: str, file: str, revision: str | None = None) -> str:
        self.asked.append(f"{repository}/{file}")
        return str(self.folder / repository / file)


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Hub:
    folder = tmp_path_factory.mktemp("hub")
    files = {
        "me/rex": ["README.md", "pytorch_lora_weights.safetensors", "more.safetensors"],
        "me/lone": ["tom.safetensors", "README.md"],
        "me/peft": ["adapter_config.json", "adapter_model.safetensors"],
        "me/several": ["a.safetensors", "b.safetensors"],
        "me/none": ["README.md"],
    }
    for repository, names in files.items():
        (folder / repository).mkdir(parents=True)
        for name in names:
            (folder / repository / name).write_bytes(b"")
    return Hub(folder, monkeypatch)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("me/rex", "me/rex/pytorch_lora_weights.safetensors"),
        ("me/lone", "me/lone/tom.safetensors"),
        ("me/peft", "me/peft/adapter_model.safetensors"),
        ("me/several/b.safetensors", "me/several/b.safetensors"),
    ],
)
def test_a_name_on_the_hub_stands_for_one_file(name: str, file: str, hub: Hub, here: Path):
    assert lora_file(Path(name)) == hub.folder / file


def test_both_files_of_a_peft_adapter_are_fetched(hub: Hub, here: Path):
    lora_file(Path("me/peft"))
    assert hub.asked == ["me/peft/adapter_model.safetensors", "me/peft/adapter_config.json"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("me/several", "has 2 .safetensors files.*such as me/several/a.safetensors"),
        ("me/none", "'me/none' has 0 .safetensors files"),
    ],
)
def test_a_repository_that_does_not_stand_for_one_file_says_so(name: str, sentence: str, hub: Hub, here: Path):
    with pytest.raises(TaraError, match=sentence):
        lora_file(Path(name))


def test_an_existing_path_wins_and_a_file_missing_in_an_existing_folder_is_not_looked_for(hub: Hub, here: Path):
    (here / "me" / "rex").mkdir(parents=True)
    (here / "me" / "rex" / "mine.safetensors").write_bytes(b"")
    assert lora_file(Path("me/rex")) == Path("me/rex/mine.safetensors")
    with pytest.raises(TaraError, match=r"no adapter file 'me/rex/min\.safetensors'.*'mine\.safetensors'"):
        lora_file(Path("me/rex/min.safetensors"))
    assert hub.asked == []


@pytest.mark.parametrize(
    "name", ["rex.safetensors", "./rex", "../me/rex", "/me/rex", "me/rex/notes.txt", "out/a.safetensors"]
)
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(name: str, hub: Hub, here: Path):
    with pytest.raises(TaraError, match="There is no adapter file"):
        lora_file(Path(name))
    assert hub.asked == []


@pytest.mark.parametrize("command", [["generate", "a xlo dog", "--base", "sd15", "-a"], ["inspect"]])
@pytest.mark.parametrize(
    ("name", "fetch"),
    [
        ("someone/their-dog", "`hf download someone/their-dog pytorch_lora_weights.safetensors`"),
        ("someone/dogs/rex.safetensors", "`hf download someone/dogs rex.safetensors`"),
    ],
)
def test_without_a_network_the_command_that_fetches_is_told(
    command: list[str], name: str, fetch: str, here: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
):
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("There is no network here")

    for asked in ("list_repo_files", "hf_hub_download"):
        monkeypatch.setattr(f"huggingface_hub.{asked}", offline)
    said = refused(*command, name)
    assert fetch in said
    assert "(There is no network here)" in said


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("GatedRepoError", "one has to accept its terms on its page there"),
        ("RepositoryNotFoundError", "there is no such repository, or it is private"),
        ("RevisionNotFoundError", "it has no such revision"),
        ("RemoteEntryNotFoundError", "it has no such file"),
    ],
)
def test_what_the_hub_refuses_is_told_in_words(error: str, reason: str):
    kind = getattr(errors, error)
    failure = kind.__new__(kind, "404 Client Error. (Request ID: 0)")  # its own constructor wants a response
    assert f"did not return it ({reason}" in str(not_fetched("me/rex", failure))


@pytest.mark.parametrize("file", ["pytorch_lora_weights.safetensors", "adapter_model.safetensors"])
def test_without_a_network_what_was_fetched_before_is_used(file: str, here: Path, monkeypatch: pytest.MonkeyPatch):
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("There is no network here")

    def cached(repository: str, name: str) -> str | None:
        return f"cache/{repository}/{name}" if name == file else None

    monkeypatch.setattr("huggingface_hub.list_repo_files", offline)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert lora_file(Path("me/rex")) == Path("cache/me/rex") / file


def test_an_adapter_on_the_hub_generates_and_is_remembered_by_its_name_there(
    hub: Hub, base: Path, here: Path, refused: Any
):
    file = hub.folder / "me" / "rex" / "pytorch_lora_weights.safetensors"
    tiny_adapters.random_adapter(Base(tiny_bases.sd_pipeline())).save(file)
    assert load_adapter("me/rex").name == "me/rex"
    assert parse_adapter("me/rex:0.5,rare_word=abc").name == "me/rex"
    flags = ["--base", str(base), "--steps", "1", "--seeds", "0", "--device", "cpu"]
    assert main(["generate", "a xlo dog", "-a", "me/rex:0.5", *flags]) == 0
    (used,) = read_provenance(here / "out" / "0001-seed0.png").adapters
    assert (used.given, used.path) == ("me/rex:0.5", "me/rex")
    again = ["generate", "--from", "out/0001-seed0.png", "--device", "cpu", "--out", "again"]
    assert main(again) == 0
    assert (here / "again" / "0001-seed0.png").read_bytes() == (here / "out" / "0001-seed0.png").read_bytes()
    tiny_adapters.random_adapter(Base(tiny_bases.sd_pipeline()), seed=1).save(file)
    assert "'me/rex' has changed since" in refused(*again)


@pytest.mark.parametrize("name", ["rex", "me/rex", "me/rex.v2_3-a"])
def test_a_repositorys_name_is_taken(name: str):
    assert is_repository(name)


@pytest.mark.parametrize("name", ["", "me/", "me/rex/tom", "my dog", "-rex", "rex--tom", "a" * 97])
def test_a_name_that_no_repository_can_have_is_not(name: str):
    assert not is_repository(name)
    assert is_repository(repository_name(name))


def logged_in(monkeypatch: pytest.MonkeyPatch, **hub: Any) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_secret")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: SimpleNamespace(**hub))


def test_a_folder_is_uploaded_to_a_repository_that_is_made_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    calls: list[dict[str, Any]] = []

    class Address(str):
        repo_id = "me/rex"

    def create_repo(repository: str, **options: Any) -> Address:
        calls.append({"repository": repository} | options)
        return Address("https://hub/me/rex")

    logged_in(monkeypatch, create_repo=create_repo, upload_folder=lambda **options: calls.append(options))
    assert upload(tmp_path, "rex") == "https://hub/me/rex"
    assert calls[0] == {"repository": "rex", "exist_ok": True}
    assert calls[1].items() >= {"repo_id": "me/rex", "folder_path": tmp_path}.items()


@pytest.mark.parametrize("failure", [ConnectionError("No network"), ValueError("Bad name"), KeyboardInterrupt()])
def test_an_upload_that_fails_says_how_to_do_it_later(
    failure: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    logged_in(monkeypatch, create_repo=fail)
    reason = str(failure) or "KeyboardInterrupt"
    with pytest.raises(TaraError, match=rf"was not uploaded \({reason}\).*`hf upload me/rex {tmp_path} \.`"):
        upload(tmp_path, "me/rex")


def test_who_is_not_logged_in_is_told_how_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(TaraError, match=rf"`hf auth login`, then: `hf upload rex {tmp_path} \.`"):
        upload(tmp_path, "rex")
    assert with_owner("rex") == "rex"


def test_the_owner_of_a_repository_is_whoever_is_logged_in(monkeypatch: pytest.MonkeyPatch):
    logged_in(monkeypatch)
    monkeypatch.setattr("huggingface_hub.whoami", lambda: {"name": "me"})
    assert (with_owner("rex"), with_owner("you/rex")) == ("me/rex", "you/rex")


def test_training_is_kept_where_nothing_can_be_uploaded(
    trained: Path, base: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    flags = [
        "--images",
        trained / "dog",
        "--rare-word",
        "xlo",
        "--class-word",
        "dog",
        "--base",
        base,
        "--out",
        "rex.safetensors",
    ]
    assert main(["train", *map(str, flags), *TINY, "--push-to-hub"]) == 0
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Note: ")]
    assert note.endswith("then: `hf upload rex rex.run/hub .`.")
    assert load_adapter("rex.safetensors").card.settings.keys().isdisjoint({"push_to_hub", "hub_model_id"})
    hub = here / "rex.run" / "hub"
    assert {str(path.relative_to(hub)) for path in hub.rglob("*.*")} == {
        "README.md",
        "pytorch_lora_weights.safetensors",
        "images/rex-0.png",
    }


def test_a_finished_training_can_be_uploaded_afterwards(
    trained: Path, base: Path, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[Path, str]] = []

    def uploaded(folder: Path, repository: str) -> str:
        asked.append((folder, repository))
        return "https://hub/me/dog"

    monkeypatch.setattr("tara.training.run.run.upload", uploaded)
    flags = [
        "--images",
        trained / "dog",
        "--rare-word",
        "xlo",
        "--class-word",
        "dog",
        "--base",
        base,
        "--out",
        "rex.safetensors",
    ]
    assert main(["train", *map(str, flags), *TINY]) == 0
    assert not (here / "rex.run" / "hub").exists()
    assert main(["train", "rex.run", "--resume", "--push-to-hub", "--hub-model-id", "me/dog"]) == 0
    assert asked == [(Path("rex.run/hub"), "me/dog")]
    assert "On the hub: https://hub/me/dog" in capsys.readouterr().out
    assert (here / "rex.run" / "hub" / "images" / "rex-0.png").exists()


def test_a_repositorys_bad_name_is_refused_before_anything_is_trained(trained: Path, here: Path, refused: Any):
    flags = [
        "--images",
        trained / "dog",
        "--rare-word",
        "xlo",
        "--class-word",
        "dog",
        "--base",
        "sd15",
        "--hub-model-id",
        "my dog",
    ]
    assert "hub_model_id is 'my dog', which is not a valid repository name" in refused("train", *flags)
    assert list(here.iterdir()) == []
