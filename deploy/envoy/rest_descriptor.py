"""Adds the HTTP rules of rest.yaml to the contract: ``python rest_descriptor.py CONTRACT OUTPUT``.

Both are sets of file descriptors, the contract as ``make descriptor`` writes it. Envoy's transcoder and generators of
OpenAPI documents read the rules from options of the methods.
"""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from google.api import annotations_pb2, service_pb2
from google.protobuf import descriptor_pb2, json_format

_RULES = Path(__file__).with_name("rest.yaml")


def main(contract: Path, output: Path) -> None:
    """Write the contract with its rules."""
    service = json_format.ParseDict(yaml.safe_load(_RULES.read_text(encoding="utf-8")), service_pb2.Service())
    rules = {rule.selector: rule for rule in service.http.rules}
    files = descriptor_pb2.FileDescriptorSet.FromString(contract.read_bytes())
    for file in files.file:
        for described in file.service:
            for method in described.method:
                rule = rules.pop(f"{file.package}.{described.name}.{method.name}", None)
                if rule is not None:
                    rule.ClearField("selector")
                    method.options.Extensions[annotations_pb2.http].CopyFrom(rule)
    if rules:
        sys.exit(f"{_RULES}: the contract has no {', '.join(rules)}.")
    output.write_bytes(files.SerializeToString())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
