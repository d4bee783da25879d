"""A repository of the Hugging Face hub.

Its client lists the files, with their digests, and knows tokens, endpoints and offline mode; the
bytes are read by ranges of our own. A revision is pinned to its commit when it is listed, so what
is read cannot change. The hub answers each file with a redirect that is good for a while: it is
kept, because the hub counts questions.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urljoin

import aiohttp
from yarl import URL

from handlers.model_config import Source as Origin
from scheduler.sources._ranges import Ranges, broken, check_status
from scheduler.sources.base import GIT_SHA1, SHA256, Busy, Digest, Listing, Refused, RemoteFile

_REDIRECTS = (301, 302, 303, 307, 308)


class Source:
    """The files of one revision of a repository."""

    def __init__(self, origin: Origin) -> None:
        self._repo, self._wanted = origin.location, origin.revision
        self._commit = ""
        self._ranges = Ranges()
        #: Where the hub sends those who ask for a file, and what to show there, by path.
        self._locations: dict[str, tuple[str, dict[str, str]]] = {}

    def __repr__(self) -> str:
        return f"<Source hub {self._repo}@{self._commit or self._wanted or 'newest'}>"

    async def list_files(self) -> Listing:
        info = await asyncio.to_thread(self._info)
        self._commit = info.sha
        files = [_file(sibling, info.sha) for sibling in info.siblings or ()]
        return Listing(info.sha, tuple(file for file in files if file is not None))

    def _info(self) -> Any:
        try:
            from huggingface_hub import HfApi
        except ImportError:
            raise Refused(
                "its source is the hub; install the client: pip install 'plait[serve]'"
            ) from None
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        where = f"the hub repository {self._repo}"
        try:
            # The endpoint is read anew, which lets a process serve several.
            api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
            return api.model_info(self._repo, revision=self._wanted, files_metadata=True)
        except HFValidationError as error:
            raise Refused(f"{self._repo!r} is no hub id: {error}") from None
        except GatedRepoError:
            raise Refused(f"{where} is gated; accept its licence and set HF_TOKEN") from None
        except RepositoryNotFoundError:
            raise Refused(f"{where} does not exist, or needs HF_TOKEN to be seen") from None
        except RevisionNotFoundError:
            raise Refused(f"{where} has no revision {self._wanted!r}") from None
        except OfflineModeIsEnabled as error:
            raise Busy(f"{where} cannot be asked: {error}") from None
        except (HfHubHTTPError, OSError) as error:
            raise Busy(f"{where} cannot be reached: {error}") from error
        except Exception as error:
            # Its HTTP library, which has been another one before, has errors of its own.
            if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "requests"):
                raise
            raise Busy(f"{where} cannot be reached: {error}") from error

    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[bytes]:
        while True:
            is_new = file.path not in self._locations
            if is_new:
                self._locations[file.path] = await self._locate(file)
            url, headers = self._locations[file.path]
            try:
                async for block in self._ranges.read(url, file, start, end, headers=headers):
                    start += len(block)
                    yield block
                return
            except Refused:
                # A redirect runs out; the hub gives a new one, or says why not.
                self._locations.pop(file.path, None)
                if is_new:
                    raise

    async def _locate(self, file: RemoteFile) -> tuple[str, dict[str, str]]:
        """Where a file's bytes are, and what to show there."""
        from huggingface_hub import HfApi, hf_hub_url

        url = hf_hub_url(
            self._repo, file.path, revision=self._commit, endpoint=os.environ.get("HF_ENDPOINT")
        )
        # What its client would show, the token included.
        headers = HfApi()._build_hf_headers()
        try:
            while True:
                async with self._ranges.session.head(
                    url, headers=headers, allow_redirects=False
                ) as response:
                    target = response.headers.get("Location", "")
                    if response.status not in _REDIRECTS or not target:
                        check_status(response, file.path)
                        return url, headers
                url, before = urljoin(url, target), url
                if URL(url).origin() != URL(before).origin():
                    # Another server, to which the token must not go; the address is signed.
                    return url, {}
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise broken(file.path, error) from error

    async def close(self) -> None:
        await self._ranges.close()


def _file(sibling: Any, commit: str) -> RemoteFile | None:
    """A file as the hub describes it; None when it says nothing of its size."""
    if sibling.size is None:
        return None
    if sibling.lfs is not None:
        digest = Digest(SHA256, sibling.lfs.sha256)
        return RemoteFile(sibling.rfilename, sibling.lfs.size, commit, digest)
    digest = Digest(GIT_SHA1, sibling.blob_id)
    return RemoteFile(sibling.rfilename, sibling.size, commit, digest)
