"""A checkpoint's address -> its folder: a local path as it is, a Hugging Face repository id by download."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from fourfold.errors import DownloadError

MODEL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "model.safetensors", "model.safetensors.index.json",
    "model-*-of-*.safetensors", "LICENSE*", "quant_model_description.json", "quant_model_weight*",
)  # fmt: skip
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(path_or_repo_id: str | Path) -> Path:
    """The folder of a checkpoint.

    A path that exists is returned.  Otherwise `organisation/name` is brought from the Hugging Face hub into
    its cache (HF_HOME), resuming what is half there and downloading nothing when it is complete;
    HF_HUB_OFFLINE=1 uses the cache alone.  Raises DownloadError with what to do about it.
    """
    path = Path(path_or_repo_id).expanduser()
    if path.is_dir():
        return path
    name = str(path_or_repo_id)
    if path.exists():
        raise DownloadError(f"{name} is a file; give the folder that holds config.json and the weights")
    if isinstance(path_or_repo_id, Path) or not _REPO_ID.fullmatch(name):
        raise DownloadError(
            f"{name}: no such folder, and not a Hugging Face repository id; "
            "allowed: the folder that holds config.json, or an id such as deepseek-ai/DeepSeek-V4-Flash"
        )
    return _download(name)


def _download(repo_id: str) -> Path:
    # Imported here: it is slow to import, and most runs need no hub.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        return Path(snapshot_download(repo_id, allow_patterns=list(MODEL_FILES)))
    except GatedRepoError as error:
        raise DownloadError(f"{repo_id}: access is gated; accept its terms and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"{repo_id}: neither a folder here nor a repository on the hub (or a private one: set HF_TOKEN)"
        ) from error
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            raise DownloadError(
                f"{repo_id}: not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE is set; "
                "unset it to download, or give a folder"
            ) from error
        raise DownloadError(_unreachable(repo_id)) from error
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DownloadError(f"{_unreachable(repo_id)} ({reason})") from error


def _unreachable(repo_id: str) -> str:
    return f"{repo_id}: cannot be downloaded; check the connection and the disk and try again, it resumes"
