"""Upload an exported folder to the Hugging Face Hub, as a model or a Space.

The login is that of huggingface_hub: `hf auth login`, or $HF_TOKEN. $HF_ENDPOINT names another Hub.
"""

import os
from pathlib import Path
from typing import Literal

from gpt2lab.errors import GPT2LabError
from gpt2lab.formatting import format_bytes

Kind = Literal["model", "space"]

_HTTP_CLIENTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3")  # of the versions of huggingface_hub


def check(repository: str, *, needs_login: bool = True) -> None:
    """Check the name of a repository and that there is a login, before anything is exported. Needs no network.

    Args:
        repository: OWNER/NAME.
        needs_login: False for a dry run.

    Raises:
        GPT2LabError: the name is not valid, or nobody is logged in.
    """
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise GPT2LabError(f"--push {repository}: {str(error).partition(chr(10))[0]}") from None
    if repository.count("/") != 1:
        raise GPT2LabError(f"--push {repository}: give OWNER/NAME, such as {repository}/gpt2-mine")
    if needs_login and not huggingface_hub.get_token():
        raise GPT2LabError(f"--push {repository}: no login for the Hub; run `hf auth login`, or set $HF_TOKEN")


def describe(folder: Path, repository: str, kind: Kind, public: bool) -> str:
    """What would be uploaded.

    Args:
        folder: an export.
        repository: OWNER/NAME.
        kind: of the repository.
        public: whether everybody could read it.

    Returns:
        A line about the repository, and one for each file.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file())
    total = format_bytes(sum(file.stat().st_size for file in files))
    head = f"would upload {len(files)} files, {total}, to the {'public' if public else 'private'} {kind} {repository}:"
    return "\n".join([head, *(f"  {file.name}  {format_bytes(file.stat().st_size)}" for file in files)])


def push(folder: Path, repository: str, kind: Kind, public: bool) -> str:
    """Upload all files of a folder in one commit. The repository is created if it does not exist.

    Args:
        folder: an export.
        repository: OWNER/NAME.
        kind: of the repository.
        public: whether everybody may read it. A public repository is not written to without.

    Returns:
        Its address.

    Raises:
        GPT2LabError: there is no such login or right, the repository is public, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    try:
        address = api.create_repo(
            repository,
            repo_type=kind,
            private=not public,
            exist_ok=True,
            space_sdk="gradio" if kind == "space" else None,
        )
        if not public and not api.repo_info(repository, repo_type=kind).private:
            raise GPT2LabError(f"--push {repository}: it exists and is public; add --public, or give another name")
        api.upload_folder(
            repo_id=repository, folder_path=folder, repo_type=kind, commit_message="Upload an export of gpt2lab"
        )
    except GPT2LabError:
        raise
    except Exception as error:  # errors of the network and the library have no common class
        raise GPT2LabError(f"--push {repository}: {_explain(error)}") from None
    return str(address)


def _explain(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
    if status == 401:
        return "the Hub does not accept the token; run `hf auth login`, or set $HF_TOKEN"
    if status == 403:
        return f"the token has no right to write there ({reason})"
    if status is not None:
        return f"the Hub refused it: {reason}"
    if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _HTTP_CLIENTS:
        return f"the upload failed: {reason}"
    offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
    return f"the Hub cannot be reached{offline}: {reason}"
