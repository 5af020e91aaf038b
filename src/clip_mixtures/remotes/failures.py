"""What the many exceptions of a remote mean, in one line that says what to do.

S3's errors arrive as OSErrors that s3fs made of botocore's, wrapped once or twice, and those of the
network as exceptions of aiohttp. They are told apart by name and code, so that nothing of these
libraries has to be imported. Codes are those of the Amazon S3 API reference, "Error responses".
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from clip_mixtures.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# Code of S3, or name of an exception class, to what it means and the way out; {name} is the
# remote's.
_MEANINGS: dict[str, str] = {
    "NoCredentialsError": "there are no credentials; {credentials}",
    "PartialCredentialsError": "half of the credentials is missing; {credentials}",
    "CredentialRetrievalError": "the credentials could not be fetched; {credentials}",
    "ProfileNotFound": "~/.aws has no such profile; mend AWS_PROFILE, or "
    "`dvc remote modify {name} profile PROFILE`",
    "InvalidAccessKeyId": "the server does not know the access key; {credentials}",
    "SignatureDoesNotMatch": "the secret key is wrong; {credentials}",
    "ExpiredToken": "the session has expired; log in again",
    "InvalidToken": "the session token is wrong; log in again",
    "RequestTimeTooSkewed": "the clock of this machine is wrong; set it",
    "AccessDenied": "these credentials may not do that; {credentials}, or ask who owns the bucket "
    "for the rights to list, read and write",
    "403": "these credentials may not do that; {credentials}, or ask who owns the bucket for the "
    "rights to list, read and write",
    "NoSuchBucket": "there is no such bucket; create it, or mend the address: "
    "`dvc remote modify {name} url s3://BUCKET/PATH`",
    "InvalidBucketName": "S3 allows no bucket of that name; mend the address: "
    "`dvc remote modify {name} url s3://BUCKET/PATH`",
    "PermanentRedirect": "the bucket is in another region; {region}",
    "301": "the bucket is in another region; {region}",
    "AuthorizationHeaderMalformed": "the bucket is in another region; {region}",
    "SlowDown": "the server asks for fewer requests; run it again with a smaller --jobs",
    "InternalError": "the server failed; wait, and run the same command again",
    "ServiceUnavailable": "the server is not available; wait, and run the same command again",
    "500": "the server failed; wait, and run the same command again",
    "502": "the server failed; wait, and run the same command again",
    "503": "the server is not available; wait, and run the same command again",
    "SSLError": "no TLS with it; {certificate}",
    "ClientConnectorCertificateError": "no TLS with it; {certificate}",
    "ClientConnectorSSLError": "no TLS with it; {certificate}",
    "EndpointConnectionError": "nothing answers there; {endpoint}",
    "ConnectTimeoutError": "nothing answers there; {endpoint}",
    "ClientConnectorError": "nothing answers there; {endpoint}",
    "ConnectionRefusedError": "nothing answers there; {endpoint}",
    "gaierror": "nothing answers there; {endpoint}",
    "ReadTimeoutError": "the connection broke; run the same command again",
    "TimeoutError": "the connection broke; run the same command again",
    "ConnectionClosedError": "the connection broke; run the same command again",
    "ConnectionResetError": "the connection broke; run the same command again",
    "ServerDisconnectedError": "the connection broke; run the same command again",
    "ClientPayloadError": "the connection broke; run the same command again",
    "IncompleteRead": "the connection broke; run the same command again",
    "ResponseParserError": "the answer makes no sense; run the same command again",
}

_WAYS_OUT = {
    "credentials": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, or put them "
    "into .dvc/config.local: `dvc remote modify --local {name} access_key_id KEY`, and "
    "secret_access_key",
    "region": "`dvc remote modify {name} region REGION`",
    "endpoint": "is the server up, and its address right? "
    "`dvc remote modify {name} endpointurl URL`",
    "certificate": "a server without it has an `endpointurl` that begins with http:, one with a "
    "certificate of your own wants `dvc remote modify {name} ssl_verify FILE.pem`",
}


def explain(error: BaseException, name: str | None, url: str) -> UserError:
    """Say what an error of a remote means and what to do about it.

    Args:
        error: as it came from DVC or what it stands on; its causes are looked through, too.
        name: the remote's name; None for the cache.
        url: its address.
    """
    where = f"remote {name!r} ({url})" if name else f"cache ({url})"
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return UserError(f"{where}: no room left on the disk; make room and run it again")
        for key in _keys(cause):
            if key in _MEANINGS:
                ways = {way: text.format(name=name) for way, text in _WAYS_OUT.items()}
                meaning = _MEANINGS[key].format(name=name, **ways)
                return UserError(f"{where}: {key}: {meaning}")
    # botocore has no class of its own for that.
    if "invalid endpoint" in str(error).lower():
        way = _WAYS_OUT["endpoint"].format(name=name)
        return UserError(f"{where}: {error}: that is no address; {way}")
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return UserError(f"{where}: {error.filename}: {error.strerror}")
    said = " ".join(str(error).split()) or "no more is known"
    return UserError(f"{where}: {type(error).__name__}: {said}")


def says_no_bucket(error: BaseException) -> bool:
    """Whether a FileNotFoundError is about the whole bucket, not a folder or object in it."""
    return any("NoSuchBucket" in _keys(cause) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what caused it, what caused that, and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__


def _keys(error: BaseException) -> Iterator[str]:
    """Yield the code of S3 that an error carries, then the names of its classes."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        yield str(response.get("Error", {}).get("Code", ""))
        # Some servers answer with a status alone.
        yield str(response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
    for kind in type(error).__mro__:
        yield kind.__name__
