"""Triton's `model_config.proto`, as far as ours use it: names, numbers and types of its fields."""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

TYPES = ("INVALID", "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16",
         "FP32", "FP64", "STRING", "BF16")  # fmt: skip
KINDS = ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL")
# Message: name, number and type of its fields; [] is repeated, {} a map from strings
MESSAGES = {
    "ModelInstanceGroup": [("name", 1, "string"), ("kind", 4, ".Kind"), ("count", 2, "int32"),
                           ("gpus", 3, "[]int32")],
    "ModelInput": [("name", 1, "string"), ("data_type", 2, ".DataType"), ("dims", 4, "[]int64")],
    "ModelOutput": [("name", 1, "string"), ("data_type", 2, ".DataType"), ("dims", 3, "[]int64")],
    "ModelDynamicBatching": [("preferred_batch_size", 1, "[]int32"),
                             ("max_queue_delay_microseconds", 2, "uint64")],
    "ModelParameter": [("string_value", 1, "string")],
    "ModelConfig": [("name", 1, "string"), ("platform", 2, "string"), ("backend", 17, "string"),
                    ("max_batch_size", 4, "int32"), ("input", 5, "[]ModelInput"),
                    ("output", 6, "[]ModelOutput"), ("dynamic_batching", 11, "ModelDynamicBatching"),
                    ("instance_group", 7, "[]ModelInstanceGroup"),
                    ("default_model_filename", 8, "string"), ("parameters", 14, "{}ModelParameter")],
}  # fmt: skip


def parse(text: str) -> Any:
    """A configuration as Triton reads it; raises where a field is not one of its, or of another type."""
    return text_format.Parse(text, _model_config()())


@functools.cache
def _model_config() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    _add_enum(file.enum_type.add(), "DataType", [f"TYPE_{name}" for name in TYPES])
    _add_enum(file.enum_type.add(), "Kind", KINDS)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            _add_field(message, field, number, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def _add_enum(enum: Any, name: str, values: Any) -> None:
    enum.name = name
    for number, value in enumerate(values):
        enum.value.add(name=value, number=number)


def _add_field(message: Any, name: str, number: int, kind: str) -> None:
    field = message.field.add(name=name, number=number, label=3 if kind[:2] in ("[]", "{}") else 1)
    if kind.startswith("{}"):
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, "string")
        _add_field(entry, "value", 2, kind[2:])
        field.type, field.type_name = 11, f".inference.{message.name}.ParametersEntry"
        return
    kind = kind.removeprefix("[]")
    numbers = {"int64": 3, "uint64": 4, "int32": 5, "string": 9}
    if kind in numbers:
        field.type = numbers[kind]
    else:
        field.type = 14 if kind.startswith(".") else 11
        field.type_name = f".inference.{kind.removeprefix('.')}"
