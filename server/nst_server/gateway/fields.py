"""Checks of single fields that several calls have."""

import re

from nst.v1 import image_pb2
from nst_server import pictures
from nst_server.gateway.errors import invalid

DIGEST = re.compile(r"[0-9a-f]{64}")
LONGEST_REQUEST_ID = 128


def check_digest(path: str, sha256: str) -> None:
    """Refuses what cannot be a SHA-256."""
    if not DIGEST.fullmatch(sha256):
        raise invalid(path, "must be 64 lower-case hexadecimal digits")


def check_request_id(request_id: str) -> None:
    """Refuses a request id that is empty or too long."""
    if not 0 < len(request_id) <= LONGEST_REQUEST_ID:
        raise invalid("request_id", f"must have 1 to {LONGEST_REQUEST_ID} characters; a UUID is a good one")


def check_form(path: str, form: image_pb2.ImageFormat) -> None:
    """Refuses a form that no picture can be made into."""
    try:
        pictures.check_format(form)
    except pictures.PictureError as error:
        raise invalid(f"{path}.{form.WhichOneof('form')}.{error.field}", error.message, error.reason) from error
