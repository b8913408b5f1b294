"""The usage service as gRPC methods: map in, call, map out."""

from __future__ import annotations

import grpc
from pixyproxy_pb.v1 import usage_service_pb2 as pb
from pixyproxy_pb.v1 import usage_service_pb2_grpc as pb_grpc

from pixyproxy.core.request_context import caller
from pixyproxy.resource import mapping
from pixyproxy.service.usage import UsageService


class UsageServicer(pb_grpc.UsageServiceServicer):
    """Serves usage and quotas; the proto file documents the methods. Errors are left to the exception interceptor."""

    def __init__(self, usage: UsageService) -> None:
        self._usage = usage

    def SummarizeUsage(  # noqa: D102
        self, request: pb.SummarizeUsageRequest, context: grpc.ServicerContext
    ) -> pb.SummarizeUsageResponse:
        rows = self._usage.summarize_usage(mapping.to_usage_request(request), caller.get())
        return mapping.from_usage_rows(rows)

    def GetQuota(self, request: pb.GetQuotaRequest, context: grpc.ServicerContext) -> pb.GetQuotaResponse:  # noqa: D102
        return mapping.from_quotas(self._usage.get_quotas(mapping.to_quota_request(request), caller.get()))
