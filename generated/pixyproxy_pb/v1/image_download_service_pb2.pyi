from google.api import httpbody_pb2 as _httpbody_pb2
from pixyproxy_pb.v1 import image_service_pb2 as _image_service_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DownloadImageRequest(_message.Message):
    __slots__ = ("guid", "rendition", "read_offset", "read_limit", "if_none_match")
    GUID_FIELD_NUMBER: _ClassVar[int]
    RENDITION_FIELD_NUMBER: _ClassVar[int]
    READ_OFFSET_FIELD_NUMBER: _ClassVar[int]
    READ_LIMIT_FIELD_NUMBER: _ClassVar[int]
    IF_NONE_MATCH_FIELD_NUMBER: _ClassVar[int]
    guid: str
    rendition: _image_service_pb2.Rendition
    read_offset: int
    read_limit: int
    if_none_match: str
    def __init__(self, guid: _Optional[str] = ..., rendition: _Optional[_Union[_image_service_pb2.Rendition, str]] = ..., read_offset: _Optional[int] = ..., read_limit: _Optional[int] = ..., if_none_match: _Optional[str] = ...) -> None: ...
