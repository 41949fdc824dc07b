"""Download models from the Hugging Face hub or Kaggle into their caches: the only module that does.

`huggingface_hub` and `kagglehub` are imported on first use.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from paligemma.config import MASK_CODEC_FILES, RELEASES
from paligemma.errors import CheckpointError, HubError

# "*.json" covers configs, the shard index and checksums.
_WEIGHT_PATTERNS = ("*.safetensors", "*.weights.h5", "*.sbs", "*.npz")
_OTHER_PATTERNS = ("*.json", "tokenizer.model", "assets/tokenizer/*", *MASK_CODEC_FILES)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HF_PREFIX, KAGGLE_PREFIX = "hf://", "kaggle://"


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which files of a model to use, and how to fetch them."""

    revision: str | None = None
    """Branch, tag or commit of a hub model. PaliGemma 1 has "bfloat16" and "float16"."""
    token: str | None = field(default=None, repr=False)
    """Hub access token. Defaults to that of `hf auth login`, or HF_TOKEN."""
    offline: bool = False
    """Use only files that were downloaded before."""
    verify: bool = False
    """Compare every file with its SHA-256 before reading it."""


@dataclass(frozen=True, kw_only=True)
class FetchedCheckpoint:
    """A folder in the hub's cache, with the commit in it."""

    path: Path
    hub_id: str
    revision: str


def resolve(name_or_path: str | Path) -> Path | str:
    """Resolve a name to an existing folder or file (a Path) or a model on the hub (its id).

    >>> resolve("paligemma2-3b-mix-448")
    'google/paligemma2-3b-mix-448'
    >>> resolve("hf://google/paligemma-3b-pt-224-jax")
    'google/paligemma-3b-pt-224-jax'
    >>> resolve("kaggle://keras/paligemma2/keras/pali_gemma2_pt_3b_224")
    'kaggle://keras/paligemma2/keras/pali_gemma2_pt_3b_224'

    Raises CheckpointError for a path that does not exist and for an unknown name.
    """
    path = Path(os.path.expanduser(name_or_path))
    if path.exists():
        return path
    name = str(name_or_path)
    if name.startswith(KAGGLE_PREFIX):
        return name
    if name.startswith(_HF_PREFIX):
        hub_id = name.removeprefix(_HF_PREFIX)
        if not _HUB_ID.fullmatch(hub_id):
            raise CheckpointError(f"{name!r} is not a model of the hub; expected hf://owner/name.")
        return hub_id
    releases = {release.variant: release.hub_id for release in RELEASES}
    if name in releases:
        return releases[name]
    is_hub_id = _HUB_ID.fullmatch(name) and not path.parent.is_dir()
    if is_hub_id and not isinstance(name_or_path, Path):
        return name
    if isinstance(name_or_path, Path) or "/" in name or "\\" in name or name.startswith((".", "~")):
        raise CheckpointError(f"The folder {path} does not exist. Check the path.")
    close = difflib.get_close_matches(name, releases, n=3)
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    raise CheckpointError(
        f"{name!r} is neither a folder nor a known model. {hint}Give a folder, a release such as "
        "paligemma2-3b-mix-448, or a hub id with its owner, such as google/paligemma2-3b-mix-448."
    )


def fetch_checkpoint(
    hub_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    progress: bool = True,
    weights: bool = True,
) -> FetchedCheckpoint:
    """Download a model's config, tokenizer, safetensors and mask codec, or find them in the cache.

    An interrupted download resumes. `revision`, `token` and `offline` are as in `Source`;
    `weights=False` skips the safetensors. Raises HubError.
    """
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        # Such a token is not a valid header, and the resulting error would contain it.
        raise HubError(
            "The access token contains spaces, line breaks or non-ASCII characters. Copy it again."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils.tqdm import tqdm

    class HiddenBar(tqdm):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

    try:
        folder = snapshot_download(
            hub_id,
            revision=revision,
            token=token,
            local_files_only=offline,
            allow_patterns=[*_WEIGHT_PATTERNS, *_OTHER_PATTERNS] if weights else [*_OTHER_PATTERNS],
            # Files in subfolders are not part of the checkpoint, except a Keras tokenizer.
            ignore_patterns=["[!a]*/*", "a[!s]*/*", "*/*/*/*"],
            tqdm_class=None if progress else HiddenBar,
        )
    except (MemoryError, RecursionError):
        raise
    # In addition to its own errors, the library raises those of its HTTP library.
    except Exception as error:
        raise HubError(_explain(error, hub_id, revision, offline)) from error
    path = Path(folder)
    return FetchedCheckpoint(path=path, hub_id=hub_id, revision=path.name)


def fetch_from_kaggle(name: str, *, offline: bool = False) -> Path:
    """Download a model such as "kaggle://keras/paligemma/keras/pali_gemma_3b_224/4".

    The last part, the version, may be left out. Returns its folder in the cache of `kagglehub`.
    Raises HubError.
    """
    handle = name.removeprefix(KAGGLE_PREFIX)
    if not re.fullmatch(rf"{_HUB_ID.pattern}/{_HUB_ID.pattern}(/\d+)?", handle):
        raise HubError(
            f"{name!r} is not a model of Kaggle; expected "
            "kaggle://owner/model/framework/variation, perhaps with /version at the end."
        )
    try:
        import kagglehub
    except ImportError as error:
        raise HubError(
            f"{name} needs the package kagglehub: pip install kagglehub. Or download the model "
            "yourself and give its folder."
        ) from error
    if offline:
        raise HubError(f"{name} cannot be found offline. Give the folder of a finished download.")
    try:
        return Path(kagglehub.model_download(handle))
    except (MemoryError, RecursionError):
        raise
    except Exception as error:
        raise HubError(
            f"{name} could not be downloaded: {_first_line(error)}. Kaggle asks to accept the "
            "license on the model's page and to log in: https://www.kaggle.com/settings."
        ) from error


def is_reachable(hub_id: str, timeout_seconds: float = 5.0) -> bool:
    """Return whether the hub is reachable and has this model. Needs no access to its files."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(hub_id, timeout=timeout_seconds)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return False
    return True


def may_read(hub_id: str) -> bool:
    """Return whether the current token has access to this model's files."""
    from huggingface_hub import HfApi

    try:
        HfApi().auth_check(hub_id)
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return False
    return True


def _explain(error: Exception, hub_id: str, revision: str | None, offline: bool) -> str:
    from huggingface_hub import errors

    page = f"https://huggingface.co/{hub_id}"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{hub_id} requires accepting a license. Open {page}, log in and accept it; then "
            "provide your access token by `hf auth login`, the variable HF_TOKEN, or token=... "
            "(https://huggingface.co/settings/tokens)."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        branches = next((r.dtype_branches for r in RELEASES if r.hub_id == hub_id), ())
        choices = f" Choose one of: {', '.join(branches)}." if branches else ""
        return f"{hub_id} has no revision {revision!r}.{choices}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"The hub has no model {hub_id}, or it is private. Check the name; for a private "
            "model log in with `hf auth login` or pass token=..."
        )
    if status == 401:
        return (
            f"The hub rejected the access token for {hub_id}. Create a new one at "
            "https://huggingface.co/settings/tokens and log in again with `hf auth login`."
        )
    if status == 403:
        return f"The access token is not allowed to read {hub_id}. Give it read access: {page}."
    if isinstance(error, errors.LocalEntryNotFoundError):
        what = f"{hub_id}" + (f" at revision {revision!r}" if revision else "")
        if offline or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            return f"{what} is not fully cached, and offline mode is on. Download it once online."
        return (
            f"The hub cannot be reached, and {what} is not fully cached. Check the connection and "
            f"try again. Cause: {_first_line(error.__cause__ or error)}"
        )
    if isinstance(error, errors.HFValidationError):
        return f"{hub_id!r} is not a valid hub id; expected the form owner/name."
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full; {hub_id} could not be stored. Free some space, or set HF_HOME to a "
            "folder on a larger disk. Finished downloads are kept."
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS):
        return f"The hub cache is not writable: {error}. Set HF_HOME to another folder."
    return (
        f"{hub_id} could not be downloaded: {_first_line(error)}. Try again; the download resumes "
        "where it stopped."
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
