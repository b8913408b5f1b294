"""The policy table against what it describes: the served services, the published service config, our own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection as v1alpha

from pixyproxy.client import calls
from pixyproxy.resource import methods, reflection
from pixyproxy.resource.interceptors.exceptions import ExceptionInterceptor
from pixyproxy.resource.interceptors.messages import MessageInterceptor
from pixyproxy.resource.methods import POLICIES, Bulkhead, Credentials, Repeat
from tests.support.rpc import TIMEOUT, raw_unary

_SERVICE_CONFIG = Path("protos/pixyproxy/v1/service_config.json")
_SERVED_BY_PACKAGES = (
    health.SERVICE_NAME,
    channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name,
    reflection.SERVICE_NAME,
    v1alpha.SERVICE_NAME,
)


def test_it_has_exactly_the_methods_that_are_served() -> None:
    pool = descriptor_pool.Default()
    described = {
        f"/{service}/{method.name}"
        for service in (*methods.OWN_SERVICES, *_SERVED_BY_PACKAGES)
        for method in pool.FindServiceByName(service).methods
    }

    assert described == set(POLICIES)


def test_nothing_can_be_written_without_credentials() -> None:
    anonymous = {name for name, policy in POLICIES.items() if policy.credentials is not Credentials.REQUIRED}

    assert {name.rpartition("/")[2] for name in anonymous if name.startswith("/pixyproxy.")} == {
        "BatchGetThumbnails",
        "GetImage",
        "ListImages",
        "GetImageContent",
        "DownloadImage",
    }


def test_what_sends_a_stream_is_in_the_bulkhead_of_streams() -> None:
    pool = descriptor_pool.Default()
    for name, policy in POLICIES.items():
        _, service, method = name.split("/")
        is_stream = pool.FindServiceByName(service).methods_by_name[method].server_streaming
        # Watchers of health hold no thread; thumbnails are read, and waited for, as the bytes of streams are.
        reads_bytes = is_stream or method == "BatchGetThumbnails"
        assert (policy.bulkhead is Bulkhead.STREAM) == (reads_bytes and service != health.SERVICE_NAME), name


def test_the_published_service_config_repeats_what_may_always_be_repeated() -> None:
    (config,) = json.loads(_SERVICE_CONFIG.read_text())["methodConfig"]

    assert {f"/{name['service']}/{name['method']}" for name in config["name"]} == {
        name for name, policy in POLICIES.items() if policy.repeat is Repeat.ALWAYS and name.startswith("/pixyproxy.")
    }


@pytest.mark.parametrize(
    "call",
    [
        calls.create_image("a prompt"),
        calls.import_image(""),
        calls.update_image("guid", filename="a.png"),
        calls.delete_image("guid"),
        calls.get_image("guid"),
        calls.list_images(1, ""),
        calls.get_content("guid", read_offset=0, read_limit=0, if_none_match=""),
        calls.get_thumbnails(["guid"], 256),
        calls.create_generation("a prompt"),
        calls.get_generation("guid", ""),
        calls.list_generations(1, ""),
        calls.watch_generation("guid", ""),
        calls.cancel_generation("guid"),
        calls.summarize_usage(None, None, (), ""),
        calls.is_serving(),
    ],
    ids=lambda call: type(call.request).__name__,
)
def test_the_client_repeats_what_may_be_repeated(call: calls.Call[Any]) -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        name = attrgetter(call.method)(calls.Stubs(channel))._method.decode()

    # Every creation that the client sends has a request id.
    assert call.is_repeatable == (POLICIES[name].repeat is not Repeat.NEVER)


@pytest.fixture
def echoing() -> Iterator[grpc.Channel]:
    """A server that serves every method there may be, behind the interceptor that refuses those without a policy."""

    class Everything(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
            return grpc.unary_unary_rpc_method_handler(lambda request, _: request)

    interceptors = [ExceptionInterceptor(), MessageInterceptor()]
    server = grpc.server(ThreadPoolExecutor(1), handlers=[Everything()], interceptors=interceptors)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            yield channel
    finally:
        server.stop(None)


@pytest.mark.parametrize("method", ["/pixyproxy.v1.ImageService/GetEverything", "/another.Service/Get"])
def test_a_served_method_without_a_policy_is_refused(echoing: grpc.Channel, method: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw_unary(echoing, method)(b"request", timeout=TIMEOUT)

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_served_method_with_a_policy_is_answered(echoing: grpc.Channel) -> None:
    get_image = raw_unary(echoing, "/pixyproxy.v1.ImageService/GetImage")

    assert get_image(b"request", timeout=TIMEOUT) == b"request"
