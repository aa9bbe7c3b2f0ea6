"""The stores that can run here, each with a place of its own for a test."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from wds_pipeline.config_storage import StorageConfig
from wds_pipeline.storage import Place, Storage, open_storage
from wds_pipeline_tests.s3 import servers as s3
from wds_pipeline_tests.stores.hub_server import REPO, serve_hub
from wds_pipeline_tests.stores.sftp_server import serve_openssh, serve_paramiko
from wds_pipeline_tests.stores.web_server import serve_web

Part = Literal["source", "destination"]

AZURITE = (
    "DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey="  # known to everybody
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;"
    "BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
)
CONTAINER = "container"


@dataclass
class Backend:
    """A store that runs. `url`: of a root that nothing is below; `folder`: where its files are, if it is
    written by the machine's own filesystem and not by ours."""

    name: str
    url: str
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    writable: bool = True
    conditional: bool = True
    """Whether its server heeds a conditional create."""
    folder: Path | None = None
    cannot_hold: frozenset[str] = frozenset()
    """Characters in names that the server, which stands for another, does not understand."""

    def place(self, part: Part = "destination", **storage: Any) -> Place:
        """What opens it."""
        return Place(
            url=self.url,
            storage=StorageConfig.model_validate({"retry_seconds": 5, **self.options, **storage}),
            part=part,
            dataset="small" if self.writable or part == "source" else "",
            single_writer=not self.conditional,
        )

    def open(self, part: Part = "destination", **storage: Any) -> Storage:
        """It, opened."""
        return open_storage(self.place(part, **storage))

    def fill(self, files: dict[str, bytes]) -> None:
        """Puts files into it, by other means than ours where there are any."""
        storage = None if self.folder else self.open()
        for path, data in files.items():
            if self.folder:
                target = self.folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)
            else:
                assert storage is not None
                storage.put(path, data)

    def remove(self, path: str) -> None:
        """Removes a file."""
        if self.folder:
            (self.folder / path).unlink()
        else:
            self.open().delete(path)


NAMES = (
    "local",
    "memory",
    "http",
    "s3-moto",
    "s3-rclone",
    "sftp",
    "sftp-openssh",
    "az",
    "gs",
    "hf",
)
WRITABLE = tuple(name for name in NAMES if name not in ("http", "hf"))


class Backends:
    """Starts the servers that are asked for, once; and gives a root of its own to who asks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running = ExitStack()
        self._started: dict[str, Any] = {}

    def close(self) -> None:
        """Ends the servers."""
        self._running.close()

    def get(self, name: str) -> Backend:
        """A backend with an empty root. Skips the test where it cannot run."""
        root = f"r-{uuid.uuid4().hex[:12]}"
        make = getattr(self, "_" + name.replace("-", "_"))
        made: Backend = make(root)
        return made

    def _server(self, name: str, start: Any) -> Any:
        if name not in self._started:
            self._started[name] = self._running.enter_context(start)
        return self._started[name]

    def _new_folder(self, *names: str) -> Path:
        folder = self._folder.joinpath(*names)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _local(self, root: str) -> Backend:
        folder = self._folder / "local" / root
        return Backend("local", str(folder), folder=folder)

    def _memory(self, root: str) -> Backend:
        return Backend("memory", f"memory://{root}/below")

    def _http(self, root: str) -> Backend:
        folder = self._new_folder("http")
        url = self._server("http", serve_web(folder))
        # As somebody would write it who knows of escapes, or does not.
        name = f"{root} ü"
        (folder / name).mkdir()
        return Backend("http", f"{url}/{name}/", writable=False, folder=folder / name)

    def _s3(self, name: str, server: s3.S3Server) -> Backend:
        bucket = f"test-{uuid.uuid4().hex[:12]}"
        server.client().create_bucket(Bucket=bucket)
        return Backend(
            name,
            f"s3://{bucket}/some/where",
            options={"endpoint_url": server.endpoint},
            environment={
                "AWS_ACCESS_KEY_ID": s3.KEY,
                "AWS_SECRET_ACCESS_KEY": s3.SECRET,
                "AWS_DEFAULT_REGION": s3.REGION,
                "AWS_CONFIG_FILE": os.devnull,
                "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
                "AWS_EC2_METADATA_DISABLED": "true",
            },
            conditional=server.conditions,
        )

    def _s3_moto(self, root: str) -> Backend:
        return self._s3("s3-moto", self._server("moto", s3.serve_moto()))

    def _s3_rclone(self, root: str) -> Backend:
        folder = self._new_folder("rclone")
        return self._s3("s3-rclone", self._server("rclone", s3.serve_rclone(folder)))

    def _sftp(self, root: str) -> Backend:
        start = serve_paramiko(self._new_folder("sftp"))
        return self._of_sftp("sftp", self._server("sftp", start), root)

    def _sftp_openssh(self, root: str) -> Backend:
        start = serve_openssh(self._new_folder("openssh"))
        return self._of_sftp("sftp-openssh", self._server("openssh", start), root)

    def _of_sftp(self, name: str, server: tuple[str, Path], root: str) -> Backend:
        url, key = server
        folder = key.parent / root
        options = {"options": {"key_filename": str(key), "look_for_keys": False}}
        return Backend(name, f"{url}{folder}", options=options, folder=folder)

    def _az(self, root: str) -> Backend:
        connection = self._server("az", serve_azurite())
        environment = {"AZURE_STORAGE_CONNECTION_STRING": connection}
        return Backend("az", f"az://{CONTAINER}/{root}/x", environment=environment)

    def _gs(self, root: str) -> Backend:
        endpoint = self._server("gs", serve_gcs("--conditions"))
        return gs_backend(endpoint, root)

    def _hf(self, root: str) -> Backend:
        pytest.importorskip(
            "huggingface_hub", reason="not installed: pip install 'wds-pipeline[huggingface]'"
        )
        folder = self._new_folder("hf")
        endpoint = self._server("hf", serve_hub(folder))
        (folder / root).mkdir()
        return Backend(
            "hf",
            f"hf://{REPO}/{root}",
            options={"options": {"endpoint": endpoint}},
            writable=False,
            folder=folder / root,
        )


def gs_backend(endpoint: str, root: str) -> Backend:
    """A root in an emulator of Google Cloud Storage."""
    return Backend(
        "gs",
        f"gs://bucket/{root}/x",
        options={"anonymous": True, "options": {"endpoint_url": endpoint}},
        cannot_hold=frozenset(";"),
    )


@contextmanager
def serve_gcs(*arguments: str) -> Iterator[str]:
    """The emulator's URL. Skips where it is not installed."""
    import sys

    pytest.importorskip("gcsfs", reason="gcsfs is not installed: pip install 'wds-pipeline[gcs]'")
    pytest.importorskip(
        "gcp_storage_emulator", reason="not installed: pip install gcp-storage-emulator"
    )
    command = [sys.executable, "-m", "wds_pipeline_tests.stores.gcs_emulator", *arguments]
    with s3.run_server(command, r"Running on (http://\S+)") as endpoint:
        yield endpoint


@contextmanager
def serve_azurite() -> Iterator[str]:
    """Azurite's connection string, with one container. Skips where there is no Azurite."""
    pytest.importorskip("adlfs", reason="adlfs is not installed: pip install 'wds-pipeline[azure]'")
    from azure.storage.blob import BlobServiceClient

    beside = Path(__file__).parents[2] / "node_modules" / ".bin"
    program = shutil.which("azurite-blob", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        pytest.skip("there is no azurite-blob here: npm install azurite")
    # Newer clients name versions of the API that it does not know yet.
    command = [program, "--inMemoryPersistence", "--blobHost", "127.0.0.1", "--blobPort", "0"]
    command += ["--skipApiVersionCheck", "--disableTelemetry"]
    with s3.run_server(command, r"listens on http://127\.0\.0\.1:(\d+)") as port:
        connection = AZURITE.format(port=port)
        BlobServiceClient.from_connection_string(connection).create_container(CONTAINER)
        yield connection
