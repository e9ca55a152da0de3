"""How an order reaches the site: its inputs first, its image if only this machine has it, then the jobs, once."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from distributio.cli import config, local_engine, progress, show
from distributio.cli.exits import ExitCode, Stop
from distributio.cli.order import Order
from distributio.cli.quantities import size_text
from distributio.wire.native import BatchSubmission, BatchView, ImageView, Input

if TYPE_CHECKING:
    from distributio.sdk.client import Client

_NOT_FETCHED = frozenset({"unknown-image", "image-unreachable", "image-refused"})  # the site's registry did not help


def send(client: "Client", order: Order) -> BatchView:
    """Submit; return the batch, which is `last` from now on."""
    from distributio.sdk.errors import SiteError

    check(order)
    _heed_pull(client, order)
    submission = order.submission(upload_inputs(client, order))
    if _is_local(order.spec.image) and not _is_held(client, order.spec.image):
        import_local(client, local_engine.must_find_somewhere(order.spec.image))  # no registry has it
    key = uuid.uuid4().hex
    try:
        batch = client.submit(submission, key=key)
    except SiteError as error:
        if error.code not in _NOT_FETCHED or order.pull == "always":
            raise
        local = local_engine.find(order.spec.image)
        if local is None:
            raise
        show.note(
            f"Image {order.spec.image} is not on the site; found in the local {local.engine}; "
            f"importing ({size_text(local.size_bytes)})"
        )
        import_local(client, local)
        batch = client.submit(submission, key=key)
    for warning in batch.warnings:
        show.note(f"Note: {warning}")
    config.remember_last(client.url, batch.id)
    return batch


def check(order: Order) -> None:
    """Find what the site would refuse before anything is sent."""
    try:
        submission = order.submission([])
        msgspec.convert(msgspec.to_builtins(submission), BatchSubmission)
    except msgspec.ValidationError as error:
        raise Stop(f"The job cannot be submitted: {error}.") from error


def upload_inputs(client: "Client", order: Order) -> list[Input]:
    """Bring every input to the site that it does not hold yet."""
    sent = []
    for item in order.inputs:
        try:
            size = 0 if item.source.is_dir() else item.source.stat().st_size
            with progress.bar(f"Sending {item.source.name}", size) as shown:
                sent.append(client.upload_input(item.source, item.path, progress=shown))
        except OSError as error:
            raise Stop(f"{item.source} cannot be read: {error.strerror}. Check its name and permissions.") from error
    return sent


def import_local(client: "Client", image: local_engine.LocalImage, reference: str = "") -> ImageView:
    """Stream an image of a local engine to the site."""
    with local_engine.saved(image) as pieces, progress.bar(f"Importing {image.reference}", image.size_bytes) as shown:
        return client.upload_image(reference or image.reference, pieces, shown, image.size_bytes)


def import_file(client: "Client", file: Path, reference: str) -> ImageView:
    """Stream an image archive to the site."""
    try:
        size = file.stat().st_size
        with file.open("rb") as source, progress.bar(f"Importing {file.name}", size) as shown:
            return client.upload_image(reference, iter(lambda: source.read(1 << 20), b""), shown, size)
    except OSError as error:
        raise Stop(f"{file} cannot be read: {error.strerror}. Check its name and permissions.") from error


def _heed_pull(client: "Client", order: Order) -> None:
    if order.pull == "always":
        client.import_image(order.spec.image, refresh=True)
    if order.pull == "local":
        import_local(client, local_engine.must_find_somewhere(order.spec.image))
    if order.pull == "never" and not _is_held(client, order.spec.image):
        raise Stop(
            f"The site holds no image {order.spec.image}, and --pull never forbids fetching it. "
            f"Import it with `distributio image import {order.spec.image}`.",
            ExitCode.REFUSED,
        )


def _is_held(client: "Client", reference: str) -> bool:
    return any(canonical(image.reference) == canonical(reference) for image in client.images())


def _is_local(reference: str) -> bool:
    return reference.startswith("localhost/")  # as podman names what was built or tagged on this machine


def canonical(reference: str) -> str:
    """The full name of an image: python:alpine is docker.io/library/python:alpine."""
    name, at, digest = reference.partition("@")
    first, slash, _ = name.partition("/")
    if not slash:
        name = f"docker.io/library/{name}"
    elif not ("." in first or ":" in first or first == "localhost"):
        name = f"docker.io/{name}"
    if ":" not in name.rpartition("/")[2] and not at:
        name += ":latest"
    return name + at + digest


def with_name(order: Order, name: str) -> Order:
    """The order under another name."""
    return replace(order, name=name) if name else order
