"""Objects of one bucket: S3 by boto3, and the in-memory twin."""

from __future__ import annotations

import datetime as dt
import hashlib
import io
import os
import random
import re
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from include.evergreen import silence
from include.evergreen.errors import NotFound, Refused, SettingsError, Unavailable
from include.evergreen.lake.ports import ObjectInfo
from include.evergreen.settings import ObjectStoreSettings, Timeouts

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ONE_WRITE = 64 * 1024
DENIED = {401, 403}
BUSY = {408, 429}
URL = re.compile(r"(?: on| to| from)?(?: the)? endpoint URL: \"[^\"]*\"\.?")
"""What botocore adds to its errors: the key is named already."""


@lru_cache(maxsize=8)
def _client(process: int, store: ObjectStoreSettings, timeouts: Timeouts) -> S3Client:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        region_name=store.region,
        aws_access_key_id=store.access_key.get_secret_value() if store.access_key else None,
        aws_secret_access_key=store.secret_key.get_secret_value() if store.secret_key else None,
        config=Config(
            connect_timeout=timeouts.connect,
            read_timeout=timeouts.read,
            retries={"mode": "standard", "total_max_attempts": timeouts.tries},
            max_pool_connections=32,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"addressing_style": "path"},
        ),
    )


def client(store: ObjectStoreSettings, timeouts: Timeouts) -> S3Client:
    """A boto3 client bounded by `timeouts`. Shared by the threads of a process, never across a fork."""
    return _client(os.getpid(), store, timeouts)


class S3Objects:
    """One bucket of an S3 endpoint. Safe for parallel use by threads."""

    def __init__(self, store: ObjectStoreSettings, bucket: str, timeouts: Timeouts) -> None:
        self.store = store
        self.bucket = bucket
        self.timeouts = timeouts

    @property
    def _s3(self) -> S3Client:
        return client(self.store, self.timeouts)

    @contextmanager
    def _errors(self, key: str = "") -> Iterator[None]:
        """Turn botocore's errors into the engine's."""
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            ConnectTimeoutError,
            NoCredentialsError,
            PartialCredentialsError,
            ReadTimeoutError,
        )

        endpoint = self.store.endpoint or f"AWS S3 in {self.store.region}"
        if (ago := silence.rests(endpoint)) is not None:
            raise Unavailable(f"{self.uri(key)}: expected an answer from {endpoint}, found it silent {ago:.0f} s ago")
        try:
            yield
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            code = error.response.get("Error", {}).get("Code", "")
            answer = f"{endpoint} answered {status} {code}"
            if status == 404 or code in {"NoSuchKey", "NoSuchBucket"}:
                what = f"bucket {self.bucket}" if code == "NoSuchBucket" else "an object"
                raise NotFound(f"{self.uri(key)}: expected {what}, {answer}") from error
            if status in DENIED:
                raise SettingsError(f"{self.uri(key)}: expected valid keys of the object store, {answer}") from error
            if status >= 500 or status in BUSY or status == 0:
                raise Unavailable(f"{self.uri(key)}: expected success, {answer}") from error
            raise Refused(f"{self.uri(key)}: {answer}: {error}") from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise SettingsError(f"{self.uri(key)}: expected keys of the object store, found none") from error
        except (BotoCoreError, OSError) as error:
            within = ""
            if isinstance(error, ConnectTimeoutError | ReadTimeoutError):
                silence.found(endpoint)
                within = f" within {self.timeouts.read:g} s"
            found = URL.sub("", str(error))
            raise Unavailable(f"{self.uri(key)}: expected an answer from {endpoint}{within}, found: {found}") from error

    def ensure_bucket(self) -> None:
        """Create the bucket unless it is there. Raises Unavailable, SettingsError."""
        from botocore.exceptions import ClientError

        region = self.store.region
        place: dict[str, Any] = (
            {"CreateBucketConfiguration": {"LocationConstraint": region}}
            if self.store.endpoint is None and region != "us-east-1"
            else {}
        )
        with self._errors():
            try:
                self._s3.head_bucket(Bucket=self.bucket)
                return
            except ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 404:
                    raise
            try:
                self._s3.create_bucket(Bucket=self.bucket, **place)
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") not in {
                    "BucketAlreadyOwnedByYou",
                    "BucketAlreadyExists",
                }:
                    raise

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        """Store `data` whole, or raise Unavailable with nothing visible."""
        with self._errors(key):
            if self._plain("PUT", key, data, {"Content-Type": content_type}) is None:
                self._s3.put_object(Bucket=self.bucket, Key=key, Body=data, ContentType=content_type)

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound, Unavailable."""
        with self._errors(key):
            data = self._plain("GET", key)
            return self._s3.get_object(Bucket=self.bucket, Key=key)["Body"].read() if data is None else data

    def _plain(self, method: str, key: str, data: bytes | None = None, headers: Any = None) -> bytes | None:
        """A plain request, signed and sent by boto3's own parts: a day in the lake is a file, and a call of the client
        costs twice as much processor time. What it answers; None for all but a success, for the client to ask again.
        """
        from botocore.exceptions import ConnectionError, HTTPClientError, IncompleteReadError

        for tried in range(1, self.timeouts.tries + 1):
            try:
                return self._sent(method, key, data, headers)
            except (ConnectionError, HTTPClientError, IncompleteReadError):
                if tried == self.timeouts.tries:
                    raise
                time.sleep(random.random())  # noqa: S311
        return None

    def _sent(self, method: str, key: str, data: bytes | None, headers: Any) -> bytes | None:
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import IncompleteReadError

        s3: Any = self._s3
        url = f"{s3.meta.endpoint_url}/{self.bucket}/{quote(key, safe='/~')}"
        # a timeout is of one write to the socket: a large body goes in many
        body = data if data is None or len(data) <= ONE_WRITE else io.BytesIO(data)
        request = AWSRequest(method, url, data=body, headers=headers)
        s3._request_signer.get_auth_instance("s3", s3.meta.region_name, "s3v4").add_auth(request)
        answer = s3._endpoint.http_session.send(request.prepare())
        if answer.status_code != 200:
            return None
        found: bytes = answer.content
        expected = int(answer.headers.get("Content-Length", len(found)))
        if len(found) != expected:
            raise IncompleteReadError(actual_bytes=len(found), expected_bytes=expected)
        return found

    def exists(self, key: str) -> bool:
        """Raises Unavailable."""
        try:
            self.size(key)
        except NotFound:
            return False
        return True

    def size(self, key: str) -> int:
        """Bytes of an object. Raises NotFound, Unavailable."""
        with self._errors(key):
            return self._s3.head_object(Bucket=self.bucket, Key=key)["ContentLength"]

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Every object whose key starts with `prefix`, by key. Raises NotFound (no bucket), Unavailable."""
        with self._errors(prefix):
            pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            found = [
                ObjectInfo(o["Key"], o["Size"], o.get("ETag", "").strip('"'), o["LastModified"].astimezone(dt.UTC))
                for page in pages
                for o in page.get("Contents", [])
            ]
        return sorted(found, key=lambda o: o.key)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete; a key that is not there is no error. Raises Unavailable."""
        names = list(keys)
        if len(names) == 1:
            with self._errors(names[0]):
                self._s3.delete_object(Bucket=self.bucket, Key=names[0])
            return
        for start in range(0, len(names), 1000):
            some = names[start : start + 1000]
            with self._errors(some[0]):
                answer = self._s3.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": [{"Key": key} for key in some], "Quiet": True}
                )
            failed = [e for e in answer.get("Errors", []) if e.get("Code") not in {"NoSuchKey", "NotFound"}]
            if failed:
                first = failed[0]
                raise Unavailable(
                    f"{self.uri(first.get('Key', ''))}: {len(failed)} of {len(some)} objects could not be deleted: "
                    f"{first.get('Code')} {first.get('Message')}"
                )

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"


class MemoryObjects:
    """The in-memory twin of `S3Objects`."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self._objects: dict[str, tuple[bytes, ObjectInfo]] = {}
        self._lock = threading.Lock()

    def ensure_bucket(self) -> None:
        """The bucket is there."""

    def put(self, key: str, data: bytes, content_type: str = "application/octet-stream") -> None:
        info = ObjectInfo(key, len(data), hashlib.md5(data, usedforsecurity=False).hexdigest(), dt.datetime.now(dt.UTC))
        with self._lock:
            self._objects[key] = (bytes(data), info)

    def get(self, key: str) -> bytes:
        """Raises NotFound."""
        with self._lock:
            if key not in self._objects:
                raise NotFound(f"{self.uri(key)}: expected an object, found none")
            return self._objects[key][0]

    def exists(self, key: str) -> bool:
        with self._lock:
            return key in self._objects

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        with self._lock:
            return [info for key, (_, info) in sorted(self._objects.items()) if key.startswith(prefix)]

    def delete(self, keys: Iterable[str]) -> None:
        with self._lock:
            for key in keys:
                self._objects.pop(key, None)

    def uri(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"
