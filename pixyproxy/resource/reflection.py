"""Server reflection v1 and v1alpha.

grpcio-reflection 1.85 serves v1alpha only, and clients ask for v1 first. The protocols differ in the name of their
package alone, so v1 is served by v1alpha's servicer, with v1alpha's descriptor under the other name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from grpc_reflection.v1alpha import reflection, reflection_pb2

_PACKAGE = "grpc.reflection.v1"
_FILE_NAME = "grpc/reflection/v1/reflection.proto"
_METHOD = "ServerReflectionInfo"
SERVICE_NAME = f"{_PACKAGE}.ServerReflection"


class _Pool:
    """The default pool, in which methods are found by name, too, as the protocol wants it; protobuf's finds none."""

    def __getattr__(self, name: str) -> Any:
        return getattr(descriptor_pool.Default(), name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:
        """Return the file of a symbol. Raises KeyError."""
        pool = descriptor_pool.Default()
        try:
            return pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return pool.FindMethodByName(symbol).containing_service.file


def enable_server_reflection(service_names: Iterable[str], server: grpc.Server) -> None:
    """Serve the descriptors of services, which must be in the default pool, and of reflection, in both versions."""
    reflected = [*service_names, SERVICE_NAME, reflection.SERVICE_NAME]
    pool: Any = _Pool()
    reflection.enable_server_reflection(reflected, server, pool)
    handler = grpc.stream_stream_rpc_method_handler(
        reflection.ReflectionServicer(reflected, pool).ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, {_METHOD: handler}),))


def _describe_v1() -> None:
    """Add v1's descriptor to the default pool, from which the servicer reads."""
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
    # They name v1alpha's packages in other languages, and mark it as deprecated.
    file.ClearField("options")
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


_describe_v1()
