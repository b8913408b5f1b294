"""PixyProxy's own server with all that stands around a call, but a servicer that answers from constants."""

from __future__ import annotations

import pixyproxy.serving.server
from benchmarks.peers.constants import ConstantServicer
from pixyproxy import cli

if __name__ == "__main__":
    vars(pixyproxy.serving.server)["ImageServicer"] = ConstantServicer
    cli.main()
