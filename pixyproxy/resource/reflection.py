"""Server reflection, by the name that clients ask for first, v1, and by the older one, v1alpha.

grpcio-reflection serves only v1alpha. The two differ in nothing but the name of their package, so that v1 here is
v1alpha's servicer under another name, and v1's descriptor is v1alpha's with that name in it.
"""

from __future__ import annotations

from collections.abc import Iterable

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_reflection.v1alpha import reflection, reflection_pb2

_PACKAGE = "grpc.reflection.v1"
_FILE_NAME = "grpc/reflection/v1/reflection.proto"
_METHOD = "ServerReflectionInfo"
SERVICE_NAME = f"{_PACKAGE}.ServerReflection"


def enable_server_reflection(service_names: Iterable[str], server: grpc.Server) -> None:
    """Serve the descriptions of these services, and of reflection itself, under both names.

    Args:
        service_names: full names of services whose descriptors are in the default pool.
        server: a server that is not started yet.
    """
    reflected = [*service_names, SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(reflected, server)
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.ReflectionServicer(reflected).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, {_METHOD: handler}),))


def _describe_v1() -> None:
    """Put v1's descriptor into the default pool, where the servicer looks; a second time changes nothing."""
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    old, new = f".{file.package}.", f".{_PACKAGE}."
    for message in file.message_type:
        for field in filter(lambda field: field.type_name, message.field):
            field.type_name = field.type_name.replace(old, new)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(old, new)
            method.output_type = method.output_type.replace(old, new)
    file.name, file.package = _FILE_NAME, _PACKAGE
    # They name v1alpha's packages of other languages, and call it deprecated.
    file.ClearField("options")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


_describe_v1()
