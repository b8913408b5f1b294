"""A bare gRPC server: no interceptor, no log, no credentials, no database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
from pixyproxy_pb.v1 import image_service_pb2_grpc as pb_grpc

from benchmarks.peers.constants import ConstantServicer

_THREADS = 8


def main() -> None:
    """Serve until the process is ended."""
    server = grpc.server(ThreadPoolExecutor(_THREADS), options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_ImageServiceServicer_to_server(ConstantServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
