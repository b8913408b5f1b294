import datetime

from google.protobuf import field_mask_pb2 as _field_mask_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Visibility(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VISIBILITY_UNSPECIFIED: _ClassVar[Visibility]
    VISIBILITY_PRIVATE: _ClassVar[Visibility]
    VISIBILITY_PUBLIC: _ClassVar[Visibility]

class Origin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ORIGIN_UNSPECIFIED: _ClassVar[Origin]
    ORIGIN_GENERATED: _ClassVar[Origin]
    ORIGIN_EDITED: _ClassVar[Origin]
    ORIGIN_IMPORTED: _ClassVar[Origin]

class Rendition(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RENDITION_UNSPECIFIED: _ClassVar[Rendition]
    RENDITION_256: _ClassVar[Rendition]
    RENDITION_512: _ClassVar[Rendition]
    RENDITION_1024: _ClassVar[Rendition]
    RENDITION_2048: _ClassVar[Rendition]
VISIBILITY_UNSPECIFIED: Visibility
VISIBILITY_PRIVATE: Visibility
VISIBILITY_PUBLIC: Visibility
ORIGIN_UNSPECIFIED: Origin
ORIGIN_GENERATED: Origin
ORIGIN_EDITED: Origin
ORIGIN_IMPORTED: Origin
RENDITION_UNSPECIFIED: Rendition
RENDITION_256: Rendition
RENDITION_512: Rendition
RENDITION_1024: Rendition
RENDITION_2048: Rendition

class Usage(_message.Message):
    __slots__ = ("input_tokens", "output_tokens", "total_tokens", "input_text_tokens", "input_image_tokens", "output_text_tokens", "output_image_tokens")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    INPUT_IMAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_IMAGE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_text_tokens: int
    input_image_tokens: int
    output_text_tokens: int
    output_image_tokens: int
    def __init__(self, input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., total_tokens: _Optional[int] = ..., input_text_tokens: _Optional[int] = ..., input_image_tokens: _Optional[int] = ..., output_text_tokens: _Optional[int] = ..., output_image_tokens: _Optional[int] = ...) -> None: ...

class Cost(_message.Message):
    __slots__ = ("nano_usd", "price_list")
    NANO_USD_FIELD_NUMBER: _ClassVar[int]
    PRICE_LIST_FIELD_NUMBER: _ClassVar[int]
    nano_usd: int
    price_list: str
    def __init__(self, nano_usd: _Optional[int] = ..., price_list: _Optional[str] = ...) -> None: ...

class ImageDetail(_message.Message):
    __slots__ = ("guid", "filename", "prompt", "tags", "author", "visibility", "content_type", "size_bytes", "sha256", "width", "height", "model", "created_at", "updated_at", "usage", "options", "origin", "source_guids", "cost", "placeholder")
    GUID_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    UPDATED_AT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    SOURCE_GUIDS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    PLACEHOLDER_FIELD_NUMBER: _ClassVar[int]
    guid: str
    filename: str
    prompt: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    author: str
    visibility: Visibility
    content_type: str
    size_bytes: int
    sha256: str
    width: int
    height: int
    model: str
    created_at: _timestamp_pb2.Timestamp
    updated_at: _timestamp_pb2.Timestamp
    usage: Usage
    options: GenerationOptions
    origin: Origin
    source_guids: _containers.RepeatedScalarFieldContainer[str]
    cost: Cost
    placeholder: bytes
    def __init__(self, guid: _Optional[str] = ..., filename: _Optional[str] = ..., prompt: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., author: _Optional[str] = ..., visibility: _Optional[_Union[Visibility, str]] = ..., content_type: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., model: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., updated_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., options: _Optional[_Union[GenerationOptions, _Mapping]] = ..., origin: _Optional[_Union[Origin, str]] = ..., source_guids: _Optional[_Iterable[str]] = ..., cost: _Optional[_Union[Cost, _Mapping]] = ..., placeholder: _Optional[bytes] = ...) -> None: ...

class GenerationOptions(_message.Message):
    __slots__ = ("model", "size", "quality", "output_format", "background", "moderation", "output_compression", "partial_images", "input_fidelity")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    BACKGROUND_FIELD_NUMBER: _ClassVar[int]
    MODERATION_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_COMPRESSION_FIELD_NUMBER: _ClassVar[int]
    PARTIAL_IMAGES_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIDELITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    size: str
    quality: str
    output_format: str
    background: str
    moderation: str
    output_compression: int
    partial_images: int
    input_fidelity: str
    def __init__(self, model: _Optional[str] = ..., size: _Optional[str] = ..., quality: _Optional[str] = ..., output_format: _Optional[str] = ..., background: _Optional[str] = ..., moderation: _Optional[str] = ..., output_compression: _Optional[int] = ..., partial_images: _Optional[int] = ..., input_fidelity: _Optional[str] = ...) -> None: ...

class ImageInput(_message.Message):
    __slots__ = ("guid",)
    GUID_FIELD_NUMBER: _ClassVar[int]
    guid: str
    def __init__(self, guid: _Optional[str] = ...) -> None: ...

class CreateImageRequest(_message.Message):
    __slots__ = ("prompt", "tags", "visibility", "filename", "request_id", "options", "inputs", "mask")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    MASK_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    visibility: Visibility
    filename: str
    request_id: str
    options: GenerationOptions
    inputs: _containers.RepeatedCompositeFieldContainer[ImageInput]
    mask: ImageInput
    def __init__(self, prompt: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., visibility: _Optional[_Union[Visibility, str]] = ..., filename: _Optional[str] = ..., request_id: _Optional[str] = ..., options: _Optional[_Union[GenerationOptions, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[ImageInput, _Mapping]]] = ..., mask: _Optional[_Union[ImageInput, _Mapping]] = ...) -> None: ...

class CreateImageResponse(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: ImageDetail
    def __init__(self, image: _Optional[_Union[ImageDetail, _Mapping]] = ...) -> None: ...

class ImportImageRequest(_message.Message):
    __slots__ = ("info", "data")
    INFO_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    info: ImportImageInfo
    data: bytes
    def __init__(self, info: _Optional[_Union[ImportImageInfo, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImportImageInfo(_message.Message):
    __slots__ = ("prompt", "tags", "visibility", "filename", "request_id", "sha256")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    visibility: Visibility
    filename: str
    request_id: str
    sha256: str
    def __init__(self, prompt: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., visibility: _Optional[_Union[Visibility, str]] = ..., filename: _Optional[str] = ..., request_id: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class ImportImageResponse(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: ImageDetail
    def __init__(self, image: _Optional[_Union[ImageDetail, _Mapping]] = ...) -> None: ...

class GetImageRequest(_message.Message):
    __slots__ = ("guid",)
    GUID_FIELD_NUMBER: _ClassVar[int]
    guid: str
    def __init__(self, guid: _Optional[str] = ...) -> None: ...

class GetImageResponse(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: ImageDetail
    def __init__(self, image: _Optional[_Union[ImageDetail, _Mapping]] = ...) -> None: ...

class ListImagesRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "prompt", "filename", "guid", "tags", "author", "visibility", "created_after", "created_before")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    GUID_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    AUTHOR_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    CREATED_AFTER_FIELD_NUMBER: _ClassVar[int]
    CREATED_BEFORE_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    prompt: str
    filename: str
    guid: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    author: str
    visibility: Visibility
    created_after: _timestamp_pb2.Timestamp
    created_before: _timestamp_pb2.Timestamp
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., prompt: _Optional[str] = ..., filename: _Optional[str] = ..., guid: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., author: _Optional[str] = ..., visibility: _Optional[_Union[Visibility, str]] = ..., created_after: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., created_before: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListImagesResponse(_message.Message):
    __slots__ = ("images", "next_page_token")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[ImageDetail]
    next_page_token: str
    def __init__(self, images: _Optional[_Iterable[_Union[ImageDetail, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetImageContentRequest(_message.Message):
    __slots__ = ("guid", "read_offset", "read_limit", "if_none_match", "rendition")
    GUID_FIELD_NUMBER: _ClassVar[int]
    READ_OFFSET_FIELD_NUMBER: _ClassVar[int]
    READ_LIMIT_FIELD_NUMBER: _ClassVar[int]
    IF_NONE_MATCH_FIELD_NUMBER: _ClassVar[int]
    RENDITION_FIELD_NUMBER: _ClassVar[int]
    guid: str
    read_offset: int
    read_limit: int
    if_none_match: str
    rendition: Rendition
    def __init__(self, guid: _Optional[str] = ..., read_offset: _Optional[int] = ..., read_limit: _Optional[int] = ..., if_none_match: _Optional[str] = ..., rendition: _Optional[_Union[Rendition, str]] = ...) -> None: ...

class GetImageContentResponse(_message.Message):
    __slots__ = ("info", "data")
    INFO_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    info: ContentInfo
    data: bytes
    def __init__(self, info: _Optional[_Union[ContentInfo, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ContentInfo(_message.Message):
    __slots__ = ("guid", "filename", "content_type", "size_bytes", "sha256", "not_modified", "rendition", "width", "height")
    GUID_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    NOT_MODIFIED_FIELD_NUMBER: _ClassVar[int]
    RENDITION_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    guid: str
    filename: str
    content_type: str
    size_bytes: int
    sha256: str
    not_modified: bool
    rendition: Rendition
    width: int
    height: int
    def __init__(self, guid: _Optional[str] = ..., filename: _Optional[str] = ..., content_type: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., not_modified: _Optional[bool] = ..., rendition: _Optional[_Union[Rendition, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class BatchGetThumbnailsRequest(_message.Message):
    __slots__ = ("guids", "rendition")
    GUIDS_FIELD_NUMBER: _ClassVar[int]
    RENDITION_FIELD_NUMBER: _ClassVar[int]
    guids: _containers.RepeatedScalarFieldContainer[str]
    rendition: Rendition
    def __init__(self, guids: _Optional[_Iterable[str]] = ..., rendition: _Optional[_Union[Rendition, str]] = ...) -> None: ...

class BatchGetThumbnailsResponse(_message.Message):
    __slots__ = ("thumbnails", "next_guids")
    THUMBNAILS_FIELD_NUMBER: _ClassVar[int]
    NEXT_GUIDS_FIELD_NUMBER: _ClassVar[int]
    thumbnails: _containers.RepeatedCompositeFieldContainer[Thumbnail]
    next_guids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, thumbnails: _Optional[_Iterable[_Union[Thumbnail, _Mapping]]] = ..., next_guids: _Optional[_Iterable[str]] = ...) -> None: ...

class Thumbnail(_message.Message):
    __slots__ = ("guid", "data", "content_type", "width", "height", "error")
    GUID_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    guid: str
    data: bytes
    content_type: str
    width: int
    height: int
    error: str
    def __init__(self, guid: _Optional[str] = ..., data: _Optional[bytes] = ..., content_type: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class UpdateImageRequest(_message.Message):
    __slots__ = ("guid", "filename", "tags", "visibility", "update_mask")
    GUID_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    UPDATE_MASK_FIELD_NUMBER: _ClassVar[int]
    guid: str
    filename: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    visibility: Visibility
    update_mask: _field_mask_pb2.FieldMask
    def __init__(self, guid: _Optional[str] = ..., filename: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., visibility: _Optional[_Union[Visibility, str]] = ..., update_mask: _Optional[_Union[_field_mask_pb2.FieldMask, _Mapping]] = ...) -> None: ...

class UpdateImageResponse(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: ImageDetail
    def __init__(self, image: _Optional[_Union[ImageDetail, _Mapping]] = ...) -> None: ...

class DeleteImageRequest(_message.Message):
    __slots__ = ("guid",)
    GUID_FIELD_NUMBER: _ClassVar[int]
    guid: str
    def __init__(self, guid: _Optional[str] = ...) -> None: ...

class DeleteImageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
