"""Generates pwm/api/ from proto/ (used by `make proto` and when a wheel is built).

protoc derives Python module names from file paths, and a proto package wants its files in a folder
of its own name, so the generated `from pwm.v1 import x_pb2` is rewritten to where the modules live:
pwm/api/v1. Google's own annotations come from googleapis-common-protos.
"""

import pathlib
import re
import shutil
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
TARGET = ROOT / "pwm" / "api"

# proto package folder -> Python package below pwm.api
PACKAGES = {"pwm/v1": "v1", "etcd/v3": "etcd"}

# All files with their comments, as a FileDescriptorSet.
DESCRIPTORS = "descriptors.binpb"


def main(target: pathlib.Path = TARGET) -> None:
    import google.api
    from grpc_tools import protoc

    includes = [str(PROTO), *(str(pathlib.Path(p).parents[1]) for p in google.api.__path__)]
    includes.append(str(pathlib.Path(protoc.__file__).parent / "_proto"))
    sources = sorted(str(p) for p in PROTO.rglob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch)
        arguments = ["protoc", *(f"-I{i}" for i in includes), f"--python_out={out}", f"--grpc_python_out={out}"]
        # Generated modules have no comments; the OpenAPI document takes them from here.
        arguments += ["--include_source_info", f"--descriptor_set_out={out / DESCRIPTORS}"]
        if shutil.which("protoc-gen-mypy", path=str(pathlib.Path(sys.executable).parent)):
            binary = pathlib.Path(sys.executable).parent
            arguments += [
                f"--plugin=protoc-gen-mypy={binary}/protoc-gen-mypy",
                f"--plugin=protoc-gen-mypy_grpc={binary}/protoc-gen-mypy_grpc",
                f"--mypy_out=quiet:{out}",
                f"--mypy_grpc_out=quiet:{out}",
            ]
        if protoc.main([*arguments, *sources]) != 0:
            raise SystemExit("protoc failed")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        (target / "__init__.py").write_text('"""Generated from proto/ by proto/generate.py: do not edit."""\n')
        shutil.copyfile(out / DESCRIPTORS, target / DESCRIPTORS)
        for folder, package in PACKAGES.items():
            if not (out / folder).is_dir():
                continue
            destination = target / package
            destination.mkdir()
            (destination / "__init__.py").write_text("")
            for generated in (out / folder).iterdir():
                text = relocate(generated.read_text())
                if "_grpc.py" in generated.name and "Stub" not in text:
                    continue  # a file without services
                (destination / generated.name).write_text(text)


def relocate(text: str) -> str:
    for folder, package in PACKAGES.items():
        dotted = folder.replace("/", ".")
        text = re.sub(rf"\bfrom {re.escape(dotted)} import", f"from pwm.api.{package} import", text)
        text = re.sub(rf"\bimport {re.escape(dotted)}\.(\w+)", rf"import pwm.api.{package}.\1", text)
        text = re.sub(rf"(?<![\w./\"']){re.escape(dotted)}\.(\w+_pb2)", rf"pwm.api.{package}.\1", text)
    return text


if __name__ == "__main__":
    main()
