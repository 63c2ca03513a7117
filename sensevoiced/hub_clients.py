"""ModelScope and Hugging Face behind one small interface, over their own client libraries; for hub.py.

Must never decide what is accepted: files are named and transferred here, and verified by the caller.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

MODELSCOPE = "modelscope"
HUGGINGFACE = "huggingface"


class FetchError(Exception):
    """Why a model was not fetched, in one sentence; `status` is the exit status (sysexits.h)."""

    def __init__(self, message: str, status: int = os.EX_UNAVAILABLE) -> None:
        """Keep the exit status beside the sentence."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as a hub lists it; `digest` is `sha256:HEX`, or `git:HEX` where a hub states only that."""

    name: str
    size_bytes: int
    digest: str | None


class Hub(Protocol):
    """What is needed of a hub; both raise FetchError, whatever their library raises."""

    name: str

    def list_files(self, repo: str, revision: str) -> list[RemoteFile]:
        """Name the files of the top folder."""
        ...

    def download(self, repo: str, revision: str, file: RemoteFile, folder: Path) -> Path:
        """Bring one file into `folder`, going on from what an earlier, broken-off call left there."""
        ...


class ModelScope:
    """ModelScope, through modelscope_hub; $MODELSCOPE_ENDPOINT and $MODELSCOPE_API_TOKEN are its settings."""

    name = MODELSCOPE

    def __init__(self, state: Path) -> None:
        """Take `state` for the client's locks and ids, so that nothing is written to the home directory."""
        try:
            from modelscope_hub import HubApi, HubConfig  # noqa: PLC0415 - optional, and slow to import
            from modelscope_hub.errors import HubError  # noqa: PLC0415
        except ImportError as error:
            raise FetchError(_no_client("modelscope_hub"), os.EX_CONFIG) from error
        self._errors = (HubError, OSError, ValueError)
        self._api = HubApi(HubConfig(cache_dir=state, config_dir=state))

    def list_files(self, repo: str, revision: str) -> list[RemoteFile]:
        """Name the files of the top folder, with the SHA-256 that ModelScope states."""
        try:
            listed = self._api.list_repo_files(repo, "model", revision=revision, recursive=False)
        except self._errors as error:
            raise FetchError(_failed(self.name, repo, revision, error)) from error
        return [
            RemoteFile(file.path, int(file.size), f"sha256:{file.sha256}" if file.sha256 else None)
            for file in listed
            if file.type == "blob"
        ]

    def download(self, repo: str, revision: str, file: RemoteFile, folder: Path) -> Path:
        """Bring one file; the library keeps NAME.incomplete and asks for the rest with a Range."""
        try:
            return Path(
                self._api.download_file(
                    repo, "model", file.name, revision=revision, local_dir=folder, file_size=file.size_bytes
                )
            )
        except self._errors as error:
            raise FetchError(_failed(self.name, repo, revision, error)) from error


class HuggingFace:
    """Hugging Face, through huggingface_hub; $HF_ENDPOINT and $HF_TOKEN are its settings."""

    name = HUGGINGFACE

    def __init__(self) -> None:
        """Import the client; its plain HTTP transfers are used, for Xet ones cannot be resumed later."""
        try:
            import huggingface_hub  # noqa: PLC0415 - optional, and slow to import
            from huggingface_hub import errors, file_download, hf_api, utils  # noqa: PLC0415
        except ImportError as error:
            raise FetchError(_no_client("huggingface_hub"), os.EX_CONFIG) from error
        # The base of its own error is that of the HTTP library it is built on, which has changed twice.
        http_error = cast(type[Exception], errors.HfHubHTTPError.__bases__[0])
        self._errors = (http_error, OSError, ValueError)
        self._endpoint = os.environ.get("HF_ENDPOINT") or None
        self._file_type = hf_api.RepoFile
        self._api = huggingface_hub.HfApi(endpoint=self._endpoint, library_name="sensevoiced")
        self._url = huggingface_hub.hf_hub_url
        self._headers = utils.build_hf_headers  # type: ignore[attr-defined]
        self._get = file_download.http_get

    def list_files(self, repo: str, revision: str) -> list[RemoteFile]:
        """Name the files of the top folder, with the SHA-256 of large ones, git's blob id of small ones."""
        try:
            listed = list(self._api.list_repo_tree(repo, revision=revision, recursive=False))
        except self._errors as error:
            raise FetchError(_failed(self.name, repo, revision, error)) from error
        return [
            RemoteFile(
                entry.path,
                int(entry.size),
                f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}",
            )
            for entry in listed
            if isinstance(entry, self._file_type)
        ]

    def download(self, repo: str, revision: str, file: RemoteFile, folder: Path) -> Path:
        """Bring one file; hf_hub_download drops a broken-off transfer, http_get goes on with it."""
        partial = folder / f"{file.name}.incomplete"
        try:
            with partial.open("ab") as opened:
                if opened.tell() > file.size_bytes:
                    opened.truncate(0)
                self._get(
                    self._url(repo, file.name, revision=revision, endpoint=self._endpoint),
                    opened,
                    resume_size=opened.tell(),
                    # Compressed bytes could not be gone on with: a Range counts the bytes of the file itself.
                    headers={**self._headers(library_name="sensevoiced"), "Accept-Encoding": "identity"},
                    expected_size=file.size_bytes,
                    displayed_filename=file.name,
                )
        except self._errors as error:
            raise FetchError(_failed(self.name, repo, revision, error)) from error
        target = folder / file.name
        partial.replace(target)
        return target


def _no_client(package: str) -> str:
    return f"Fetching needs the package {package}: pip install 'sensevoiced[hub]'."


def _failed(hub_name: str, repo: str, revision: str, error: Exception) -> str:
    """One sentence out of what a client library raised, which may be paragraphs."""
    first = re.split(r"[\n(]|\. ", str(error).strip() or type(error).__name__)[0].rstrip(" .:")
    return f"{repo} at {revision[:12]} could not be fetched from {hub_name}: {first[:160]}."
