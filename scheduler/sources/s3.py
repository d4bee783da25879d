"""A prefix of a bucket on S3, or on what speaks its protocol.

boto3 lists, signs and knows credentials, regions and endpoints; the bytes are read by ranges of our
own at addresses that it signs, which takes no question to the server.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any, Final

from handlers.model_config import Source as Origin
from scheduler.sources import _manifest
from scheduler.sources._ranges import Ranges
from scheduler.sources.base import SHA256, Busy, Digest, Listing, Refused, RemoteFile

#: Seconds for which a signed address is good; each is used at once.
_SIGNED_S: Final = 3600
_REFUSED: Final = frozenset(
    {"NoSuchBucket", "NoSuchKey", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch",
     "403", "404"}
)  # fmt: skip


class Source:
    """The objects below ``s3://bucket/prefix``."""

    def __init__(self, origin: Origin) -> None:
        bucket, _, prefix = origin.location.removeprefix("s3://").partition("/")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._pinned = origin.manifest_sha256
        self._ranges = Ranges()
        self._opened: Any = None

    def __repr__(self) -> str:
        return f"<Source s3 {self._bucket}/{self._prefix}>"

    async def list_files(self) -> Listing:
        return await asyncio.to_thread(self._told, self._list)

    def _list(self) -> Listing:
        client = self._client()
        pages = client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix
        )
        found = [entry for page in pages for entry in page.get("Contents", ())]
        objects = {entry["Key"].removeprefix(self._prefix): entry for entry in found}
        if not objects:
            raise Refused(f"there is nothing below s3://{self._bucket}/{self._prefix}")
        manifest = self._manifest(client, objects)
        files = []
        for path, entry in sorted(objects.items()):
            digest = manifest.digests.get(path)
            is_pinned_out = self._pinned and digest is None
            if path.endswith("/") or not _manifest.is_inside(path) or is_pinned_out:
                continue
            if digest is not None and manifest.sizes[path] != entry["Size"]:
                raise Refused(f"{path} has {entry['Size']} bytes; the manifest says otherwise")
            digest = digest or self._checksum(client, entry)
            files.append(RemoteFile(path, entry["Size"], entry["ETag"], digest))
        versions = "\n".join(f"{file.path} {file.version}" for file in files)
        revision = hashlib.sha256(versions.encode()).hexdigest()[:16]
        return Listing(revision, tuple(files), manifest.chunks)

    def _manifest(self, client: Any, objects: dict[str, Any]) -> _manifest.Manifest:
        where = f"s3://{self._bucket}/{self._prefix}{_manifest.MANIFEST_FILE}"
        if _manifest.MANIFEST_FILE not in objects:
            if self._pinned:
                raise Refused(f"there is no {where}, and the model's YAML names its digest")
            return _manifest.Manifest({}, {}, {})
        key = self._prefix + _manifest.MANIFEST_FILE
        body = client.get_object(Bucket=self._bucket, Key=key)["Body"].read(_manifest.MAX_BYTES)
        return _manifest.parse(body, where, self._pinned)

    def _checksum(self, client: Any, entry: dict[str, Any]) -> Digest | None:
        """The SHA-256 of an object that was stored with one; one made of parts has none."""
        if "SHA256" not in entry.get("ChecksumAlgorithm", ()):
            return None
        head = client.head_object(Bucket=self._bucket, Key=entry["Key"], ChecksumMode="ENABLED")
        value = head.get("ChecksumSHA256", "")
        if not value or "-" in value or head.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
            return None
        return Digest(SHA256, base64.b64decode(value).hex())

    async def read(self, file: RemoteFile, start: int, end: int) -> AsyncIterator[bytes]:
        url = await asyncio.to_thread(self._told, self._sign, file)
        async for block in self._ranges.read(url, file, start, end, etag=file.version):
            yield block

    def _sign(self, file: RemoteFile) -> str:
        where = {"Bucket": self._bucket, "Key": self._prefix + file.path}
        return str(self._client().generate_presigned_url("get_object", where, ExpiresIn=_SIGNED_S))

    def _client(self) -> Any:
        if self._opened is None:
            try:
                import boto3  # type: ignore[import-untyped]  # it has no types
                from botocore.config import Config  # type: ignore[import-untyped]  # nor has this
            except ImportError:
                raise Refused(
                    "its source is s3; install the client: pip install 'plait[s3]'"
                ) from None
            # It still signs addresses in the old way unless told otherwise.
            self._opened = boto3.client("s3", config=Config(signature_version="s3v4"))
        return self._opened

    def _told(self, work: Any, *arguments: Any) -> Any:
        """Do it, and say what boto3 raises in a source's words."""
        try:
            return work(*arguments)
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("botocore", "boto3"):
                raise
            code = getattr(error, "response", {}).get("Error", {}).get("Code", "")
            said = f"s3://{self._bucket}/{self._prefix}: {error}"
            is_ours = code in _REFUSED or type(error).__name__ in (
                "NoCredentialsError", "NoRegionError", "ProfileNotFound", "ParamValidationError",
            )  # fmt: skip
            raise (Refused(said) if is_ours else Busy(said)) from error

    async def close(self) -> None:
        await self._ranges.close()
