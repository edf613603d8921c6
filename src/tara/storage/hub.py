"""The model hub: hub ids, downloads, uploads, and the errors if it cannot be reached."""

import re
import shlex
import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tara.errors import TaraError

ADAPTER_FILE = "pytorch_lora_weights.safetensors"  # as diffusers' training scripts call it, and where it looks first
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")
LONGEST_NAME = 96
PATIENCE = 10.0  # seconds in which the hub has to answer


def is_hub_id(name: str) -> bool:
    """Whether a name could be a repository, ``owner/name``, and is not plainly a file."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not name.endswith(".safetensors")


def is_repository(name: str) -> bool:
    """Whether the hub takes a name for a new repository: ``owner/name``, or ``name`` for whoever is logged in."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def repository_name(text: str) -> str:
    """The nearest name that a repository can have."""
    return re.sub(r"\W+", "-", text, flags=re.ASCII)[:LONGEST_NAME].strip("-") or "adapter"


@contextmanager
def one_try(name: str) -> Generator[None]:
    """Ask the hub once whether it answers, for a ``with`` block that may fetch ``name``.

    Where it does not, the block works with what was fetched before: the library would ask for each file six times.
    """
    from huggingface_hub import constants, get_session

    offline = constants.HF_HUB_OFFLINE
    if not offline and not Path(name).exists():
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        except Exception:  # of whatever library the hub's uses
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline


def fetched_adapter(name: str) -> Path | None:
    """The local copy of an adapter on the hub; None for a name that can only be a path.

    Args:
        name: ``owner/name`` for a repository's only adapter, or ``owner/name/file.safetensors``.

    Raises:
        TaraError: when the hub cannot be reached, has no such repository or file, or the repository has several.
    """
    owner, _, rest = name.partition("/")
    repository, _, file = rest.partition("/")
    repository = f"{owner}/{repository}"
    # a file that is missing in a folder that is here is not looked for elsewhere
    if not is_hub_id(repository) or Path(repository).exists() or not (file.endswith(".safetensors") or not file):
        return None
    return fetch_file(repository, file, given=name) if file else _only_adapter(repository)


def _only_adapter(repository: str) -> Path:
    """The file that a repository's name stands for."""
    from huggingface_hub import list_repo_files

    try:
        with one_try(repository):
            names = list_repo_files(repository)
    except Exception as failure:  # of many kinds
        return _fetched_before(repository, failure)
    if ADAPTER_FILE in names:
        return fetch_file(repository, ADAPTER_FILE)
    if set(PEFT_FILES) <= set(names):
        weights, _ = (fetch_file(repository, file) for file in PEFT_FILES)  # beside each other
        return weights
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if len(files) == 1:
        return fetch_file(repository, files[0])
    such = f", such as {repository}/{files[0]}" if files else ""
    raise TaraError(f"'{repository}' has {len(files)} .safetensors files. Give the adapter's path in it{such}.")


def _fetched_before(repository: str, failure: Exception) -> Path:
    """The file that a repository's name most likely stands for, where the hub does not say what it holds."""
    from huggingface_hub import try_to_load_from_cache

    for name in (ADAPTER_FILE, PEFT_FILES[0]):
        if isinstance(file := try_to_load_from_cache(repository, name), str):
            return Path(file)
    raise not_fetched(repository, failure, ADAPTER_FILE) from failure


def fetch_file(repository: str, file: str, revision: str | None = None, given: str = "") -> Path:
    """A file of a repository: the copy that was fetched before, else a new one; ``given`` is the name that was typed.

    Raises:
        TaraError: when the hub cannot be reached, or has no such repository or file.
    """
    from huggingface_hub import hf_hub_download

    try:
        with one_try(repository):
            return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as failure:  # of many kinds
        raise not_fetched(repository, failure, file, revision=revision, given=given) from failure


def not_fetched(
    repository: str, failure: Exception, *what: str, revision: str | None = None, given: str = ""
) -> TaraError:
    """What to tell when a repository's files are neither here nor can be fetched.

    Args:
        repository: ``owner/name``.
        failure: what the hub's library has said.
        what: files of it, or options of ``hf download`` that choose some; all when there are none.
        revision: branch, tag or commit.
        given: what was asked for, where it is not the repository.
    """
    of = ["--revision", revision] if revision else []
    command = shlex.join(["hf", "download", repository, *of, *what])
    return TaraError(
        f"'{given or repository}' is not a local folder or file, and the hub did not return it ({_reason(failure)}). "
        f"Check the name, or download it with a network connection: `{command}`."
    )


def with_owner(repository: str) -> str:
    """``owner/name`` of a repository that has a name alone, where the hub tells who is logged in."""
    from huggingface_hub import get_token, whoami

    if "/" in repository or get_token() is None:
        return repository
    try:
        return f"{whoami()['name']}/{repository}"
    except Exception:  # of many kinds, as in `upload`, which then says what is the matter
        return repository


def upload(folder: Path, repository: str) -> str:
    """Bring a folder's files to a repository, which is made if there is none; return its address.

    Raises:
        TaraError: whatever goes wrong, with the command that does it later.
    """
    from huggingface_hub import HfApi, get_token

    later = f"`{shlex.join(['hf', 'upload', repository, str(folder), '.'])}`"
    if get_token() is None:
        raise TaraError(
            f"'{folder}' was not uploaded, because nobody is logged in. Log in with `hf auth login`, then: {later}."
        )
    try:
        hub = HfApi()
        made = hub.create_repo(repository, exist_ok=True)
        hub.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Adapter, images and model card")
    # of many kinds, in somebody's account or network; a Ctrl-C here, too, leaves what was trained as it is
    except (Exception, KeyboardInterrupt) as failure:
        raise TaraError(f"'{folder}' was not uploaded ({_reason(failure)}). Do it later: {later}.") from failure
    return str(made)


def _reason(failure: BaseException) -> str:
    """What went wrong on the hub, or the beginning of what a library tells in a paragraph."""
    from huggingface_hub import errors

    if isinstance(failure, errors.GatedRepoError):
        return "one has to accept its terms on its page there, and to log in: `hf auth login`"
    if isinstance(failure, errors.RepositoryNotFoundError):
        return "there is no such repository, or it is private: `hf auth login`"
    if isinstance(failure, errors.RevisionNotFoundError):
        return "it has no such revision"
    if isinstance(failure, errors.RemoteEntryNotFoundError):
        return "it has no such file"
    if isinstance(failure, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return "it does not answer, or HF_HUB_OFFLINE is set"
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    text = lines[0].rstrip(".") if lines else type(failure).__name__
    return textwrap.shorten(text.partition(" (")[0], 120, placeholder=" ...")
