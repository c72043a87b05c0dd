"""Uploads a published folder to the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi, constants, errors

from arm_backbone.checkpoint.errors import CheckpointError


def upload(folder: Path, repository: str, private: bool) -> str:
    """Upload all files of a folder in one commit; the repository is created if it does not exist.

    Args:
        repository: OWNER/NAME.
        private: create it as a private one.

    Returns:
        address of the repository.

    Raises:
        CheckpointError: if the hub cannot be reached, or refuses; the folder stays as it is.
    """
    api, where = HfApi(), f"{constants.ENDPOINT}/{repository}"
    try:
        api.create_repo(repository, private=private or None, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"Publish {folder.name}")
    except errors.OfflineModeIsEnabled:
        raise CheckpointError(f"{where}: HF_HUB_OFFLINE is set; unset it to upload {folder}") from None
    except errors.HfHubHTTPError as error:
        status, said = error.response.status_code, (error.server_message or "").splitlines()
        reason = ", ".join([f"HTTP {status}", *said[:1]])
        remedy = "log in with `hf auth login`, with a token that may write" if status in (401, 403) else "try again"
        raise CheckpointError(f"{where} refuses {folder} ({reason}); {remedy}; the folder is complete") from None
    except Exception as error:  # noqa: BLE001 network libraries have errors of their own, which change with versions
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{where} cannot be reached ({reason}); {folder} is complete: try again") from None
    return where
