"""Uploading the folder of a quantized model to the Hugging Face hub; only where it is asked for."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

IGNORED = [".work/*", ".work/**", "*.lock"]


def push(folder: str | Path, repo: str) -> str:
    """Create the repository if it is not there, upload the folder, and return its address.

    Raises: RuntimeError: the hub refused (no token, no right, no such organisation), with its words.
    """
    api = HfApi()
    try:
        url = api.create_repo(repo, exist_ok=True, repo_type="model")
        api.upload_folder(repo_id=repo, folder_path=str(folder), ignore_patterns=IGNORED,
                          commit_message="INT8 model of int8kit")  # fmt: skip
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise RuntimeError(f"the hub did not take {repo}: {reason}. Log in with 'hf auth login'; the folder {folder} "
                           "is whole and can be uploaded later") from None  # fmt: skip
    return str(url)
