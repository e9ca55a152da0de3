"""Which images the engine holds for us, and what must be known of them to run them."""

from pathlib import Path

import msgspec

from distributio.agent.runners import archive, selftest
from distributio.agent.runners.contract import Image, RunnerError
from distributio.agent.runners.engine import Engine, words_of
from distributio.agent.runners.flags import ImageFacts


class Images:
    """The images that were prepared; `folder` holds a note on each, named by its manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._seen: set[str] = set()

    def all(self) -> list[str]:
        """The manifest digests of all that were prepared."""
        return [f"sha256:{note.stem}" for note in sorted(self.folder.glob("*.json"))]

    def _note(self, manifest_digest: str) -> Path:
        """Where we keep what `prepare` made of an image."""
        return self.folder / (archive.blob_path(Path(), manifest_digest).name + ".json")

    def facts(self, manifest_digest: str) -> ImageFacts | None:
        """What we know of a prepared image."""
        try:
            return msgspec.json.decode(self._note(manifest_digest).read_bytes(), type=ImageFacts)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def has(self, engine: Engine, manifest_digest: str) -> bool:
        """Whether an image is ready to run. The engine is asked once; after that we remember."""
        if manifest_digest not in self._seen:
            facts = self.facts(manifest_digest)
            if facts is None or not engine.inspect(facts.id, "image"):
                return False
            self._seen.add(manifest_digest)
        return True

    def prepare(self, engine: Engine, image: Image) -> None:
        """Load an image, and be sure that what the engine holds is what was meant."""
        description = archive.describe(image.layout, image.manifest_digest)
        here = selftest.host_platform()
        if "/".join(description.platform.split("/")[:2]) != here:
            raise RunnerError("image-platform", f"the image is for {description.platform}, this machine is {here}")
        engine.load(lambda stream: archive.write_archive(description, image.layout, stream))
        loaded = str(engine.inspect(description.name, "image").get("Id", ""))
        identity = loaded.removeprefix("sha256:")
        # Engines name an image by its configuration; docker's newer store by its manifest.
        if f"sha256:{identity}" not in (description.config_digest, description.manifest_digest):
            engine.run("rmi", description.name)
            raise RunnerError("image-digest", f"the engine holds {loaded or 'nothing'} instead of the image")
        facts = ImageFacts(id=identity, user=description.user, workdir=description.workdir, volumes=description.volumes)
        self._note(image.manifest_digest).write_bytes(msgspec.json.encode(facts))
        self._seen.add(image.manifest_digest)

    def forget(self, engine: Engine, manifest_digest: str) -> None:
        """Remove an image. It is removed by our name for it, so that nothing else that shares its layers is touched."""
        if self.facts(manifest_digest) is None:
            return
        name = archive.name_of(manifest_digest)
        if engine.inspect(name, "image"):
            done = engine.run("rmi", name)
            if done.returncode:
                raise RunnerError("image-in-use", f"the image cannot be removed now: {words_of(done)}")
        self._seen.discard(manifest_digest)
        self._note(manifest_digest).unlink(missing_ok=True)
