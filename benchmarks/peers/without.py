"""PixyProxy's own server without one of its optimizations, which the variable PEER_WITHOUT names."""

from __future__ import annotations

import os

import pixyproxy.resource.mapping
import pixyproxy.service.public_images
from pixyproxy import cli
from pixyproxy.service.content import TrustedContents

if __name__ == "__main__":
    if os.environ["PEER_WITHOUT"] == "raw bytes":
        vars(pixyproxy.resource.mapping)["_data_message"] = lambda data, message: message(data=data)
    else:
        vars(pixyproxy.service.public_images)["TrustedContents"] = lambda: TrustedContents(seconds=0)
    cli.main()
