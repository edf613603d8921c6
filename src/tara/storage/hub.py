"""The model hub: hub ids, downloads, uploads, and the errors if it cannot be reached."""

import re
import shlex
import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from tara.errors import TaraError

ADAPTER_FILE = "pytorch_lora_weights.safetensors"  # written by diffusers' scripts, and tried first by diffusers
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")
LONGEST_NAME = 96
PATIENCE = 10.0  # seconds to wait for the hub's response


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a repository, ``owner/name``, and does not end with ``.safetensors``."""
    return re.fullmatch(r"\w[\w.-]*/[\w.-]+", name) is not None and not name.endswith(".safetensors")


def is_repository(name: str) -> bool:
    """Whether the hub accepts a name for a new repository: ``owner/name``, or ``name`` of the logged-in user."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def repository_name(text: str) -> str:
    """A valid repository name made from a text."""
    return re.sub(r"\W+", "-", text, flags=re.ASCII)[:LONGEST_NAME].strip("-") or "adapter"


@contextmanager
def one_try(name: str) -> Generator[None]:
    """Check once whether the hub can be reached, for a ``with`` block that may fetch ``name``.

    If it cannot, the block uses cached files only: the library would try six times for each file.
    """
    from huggingface_hub import constants, get_session

    offline = constants.HF_HUB_OFFLINE
    if not offline and not Path(name).exists():
        try:
            get_session().head(constants.ENDPOINT, timeout=PATIENCE)
        except Exception:  # exceptions of whichever HTTP library huggingface_hub uses
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
    # a missing file in an existing folder is not searched on the hub
    if not is_hub_id(repository) or Path(repository).exists() or not (file.endswith(".safetensors") or not file):
        return None
    return fetch_file(repository, file, given=name) if file else _only_adapter(repository)


def _only_adapter(repository: str) -> Path:
    """The adapter file that is meant when only the repository is given."""
    from huggingface_hub import list_repo_files

    try:
        with one_try(repository):
            names = list_repo_files(repository)
    except Exception as failure:  # of many kinds
        return _fetched_before(repository, failure)
    if ADAPTER_FILE in names:
        return fetch_file(repository, ADAPTER_FILE)
    if set(PEFT_FILES) <= set(names):
        weights, _ = (fetch_file(repository, file) for file in PEFT_FILES)  # both, in one folder
        return weights
    files = sorted(name for name in names if name.endswith(".safetensors"))
    if len(files) == 1:
        return fetch_file(repository, files[0])
    such = f", such as {repository}/{files[0]}" if files else ""
    raise TaraError(f"'{repository}' has {len(files)} .safetensors files. Give the adapter's path in it{such}.")


def _fetched_before(repository: str, failure: Exception) -> Path:
    """The cached adapter file of a repository whose files cannot be listed; raises TaraError if there is none."""
    from huggingface_hub import try_to_load_from_cache

    for name in (ADAPTER_FILE, PEFT_FILES[0]):
        if isinstance(file := try_to_load_from_cache(repository, name), str):
            return Path(file)
    raise not_fetched(repository, failure, ADAPTER_FILE) from failure


def fetch_file(repository: str, file: str, revision: str | None = None, given: str = "") -> Path:
    """A file of a repository, downloaded if it is not cached. ``given`` is the user's name for it, for errors.

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
    """The error for files of a repository that are not cached and cannot be downloaded.

    Args:
        repository: ``owner/name``.
        failure: the exception of huggingface_hub.
        what: files, or options of ``hf download`` that select files; all files if empty.
        revision: branch, tag or commit.
        given: the name that the user gave, if it is not ``repository``.
    """
    of = ["--revision", revision] if revision else []
    command = shlex.join(["hf", "download", repository, *of, *what])
    return TaraError(
        f"'{given or repository}' is not a local folder or file, and the hub did not return it ({_reason(failure)}). "
        f"Check the name, or download it with a network connection: `{command}`."
    )


def with_owner(repository: str) -> str:
    """A repository's name with its owner, the user who is logged in; unchanged if the hub cannot tell."""
    from huggingface_hub import get_token, whoami

    if "/" in repository or get_token() is None:
        return repository
    try:
        return f"{whoami()['name']}/{repository}"
    except Exception:  # exceptions of many types; `upload` then reports the cause
        return repository


def upload(folder: Path, repository: str) -> str:
    """Upload a folder's files to a repository, which is created if it does not exist. Returns its URL.

    Raises:
        TaraError: for any failure, with the command that uploads later.
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
    # many types, from account or network; like a failure, Ctrl-C leaves the trained adapters as they are
    except (Exception, KeyboardInterrupt) as failure:
        raise TaraError(f"'{folder}' was not uploaded ({_reason(failure)}). Do it later: {later}.") from failure
    return str(made)


def _reason(failure: BaseException) -> str:
    """The cause of a failure in a few words, or the beginning of the library's message."""
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
