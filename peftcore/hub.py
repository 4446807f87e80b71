"""Where an adapter directory is: on the disk, or fetched from the hub; and bringing one there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from peftcore.config import CONFIG_NAME
from peftcore.exceptions import CheckpointError

#: Keywords that are passed on to the hub.
_HUB_ARGUMENTS = ("revision", "token", "cache_dir", "force_download", "local_files_only")


def resolve_directory(model_id: str | os.PathLike[str], arguments: dict[str, Any]) -> Path:
    """Return the directory of an adapter; what is no folder on the disk is asked of the hub.

    Args:
        model_id: A folder, or ``owner/name`` on the hub.
        arguments: A caller's keywords, of which ``subfolder`` and the hub's are taken out.

    Raises:
        CheckpointError: There is no such folder, and the hub can't be asked or does not have it.
    """
    subfolder = arguments.pop("subfolder", None) or ""
    hub = {name: arguments.pop(name) for name in _HUB_ARGUMENTS if name in arguments}
    path = Path(model_id)
    if path.is_dir() or not _could_be_on_hub(str(model_id)):
        return path / subfolder
    return _download(str(model_id), subfolder, hub) / subfolder


def _could_be_on_hub(model_id: str) -> bool:
    return model_id.count("/") == 1 and not model_id.startswith((".", "/", "~")) and not model_id.endswith("/")


def _download(model_id: str, subfolder: str, arguments: dict[str, Any]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise CheckpointError(
            f"{model_id} is no folder here, and asking the hub for it needs huggingface_hub: pip install peftcore[hf]"
        ) from None
    prefix = f"{subfolder}/" if subfolder else ""
    wanted = [f"{prefix}{CONFIG_NAME}", f"{prefix}adapter_model*"]
    try:
        return Path(snapshot_download(model_id, allow_patterns=wanted, **arguments))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{model_id} is no folder here, and the hub does not give it: {error}") from error


class SharedOnHub:
    """Adds ``push_to_hub`` to what can write itself into a directory."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        **saving: Any,
    ) -> str:
        """Write adapters into a repository on the hub, which is made if there is none.

        Args:
            repo_id: ``owner/name``.
            commit_message, commit_description: Of the commit.
            private: Whether a new repository is private; None leaves that to its owner's settings.
            token: Who asks; None takes the token that is stored on this machine.
            revision: A branch, which has to be there; None is the main one.
            create_pr: Propose the commit instead of making it.
            **saving: For :meth:`save_pretrained`: ``selected_adapters``, ``max_shard_size`` …

        Returns:
            The address of the commit, or of the proposal.

        Raises:
            CheckpointError: huggingface_hub is not installed, or the hub refuses.
            AdapterNameError: There is no such adapter; nothing was sent.
        """
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise CheckpointError("Sharing on the hub needs huggingface_hub: pip install peftcore[hf]") from None
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **saving)  # type: ignore[attr-defined]
            hub = HfApi(token=token)
            try:
                repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
                commit = hub.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    commit_message=commit_message or "Upload adapter",
                    commit_description=commit_description,
                    revision=revision,
                    create_pr=create_pr,
                )
            except (OSError, ValueError) as error:
                raise CheckpointError(f"The adapter can't be brought to {repo_id} on the hub: {error}") from error
        return commit.pr_url or commit.commit_url
