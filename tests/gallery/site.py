"""The page of the gallery and PixyProxy behind one Envoy."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.support.envoy import running_envoy

API = "127.0.0.1:8080"
"""Where index.html and envoy.yaml say that PixyProxy is."""
PAGE = "127.0.0.1:8000"
"""Where envoy.yaml serves the page."""

_GALLERY = Path(__file__).parents[2] / "deploy" / "gallery"
_BUILT = _GALLERY / "build"


@contextlib.contextmanager
def running_gallery(folder: Path, server: str, *, api: str = API, page: str = PAGE) -> Iterator[None]:
    """Serve the page, which `make gallery-page` has built, and PixyProxy for browsers.

    Args:
        folder: for configuration and log.
        server: host:port of PixyProxy.
        api: host:port to serve PixyProxy on.
        page: host:port to serve the page on.
    """
    served = folder / "page"
    shutil.copytree(_BUILT, served, dirs_exist_ok=True)
    index = served / "index.html"
    index.write_text(index.read_text(encoding="utf-8").replace(f"http://{API}", f"http://{api}"), encoding="utf-8")
    text = (_GALLERY / "envoy.yaml").read_text(encoding="utf-8")
    text = text.replace(f"http://{API}", f"http://{api}").replace("deploy/gallery/build", str(served))
    (listener,) = yaml.safe_load(text)["static_resources"]["listeners"]
    host, _, port = page.rpartition(":")
    listener["address"]["socket_address"] = {"address": host, "port_value": int(port)}
    with running_envoy(folder, api, [server], origin=f"http://{page}", listeners=[listener]):
        yield
