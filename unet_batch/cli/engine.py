"""`unet-batch build-engine` and `unet-batch inspect`."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from unet_batch.cli.command import Bundle, Command, Option, Parsed, complete_path, option
from unet_batch.cli.network_options import complete_model, engines_dir_option
from unet_batch.cli.options import Size, parse_size
from unet_batch.cli.text import megabytes, plural

if TYPE_CHECKING:
    from unet_batch.build import BuildOptions, Built
    from unet_batch.cli.screen import Lines
    from unet_batch.engine.onnx_model import OnnxModel
    from unet_batch.engine.sidecar import Sidecar
    from unet_batch.engine.store import Engine
    from unet_batch.model.checkpoint import ModelFile
    from unet_batch.types import ModelSpec


def parse_sizes(text: str) -> tuple[Size, Size, Size]:
    """`160x240` three times over, or `160x240,320x480,640x960`.

    Raises:
        ValueError: it is neither one size nor three.
    """
    sizes = [parse_size(part) for part in text.split(",")]
    if len(sizes) not in (1, 3):
        raise ValueError(f"{text!r}: one size, or smallest,best,largest")
    return (sizes[0], sizes[0], sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1], sizes[2])


def parse_batch(text: str) -> tuple[int, int, int]:
    """`32` three times over, or `1,32,64`.

    Raises:
        ValueError: it is neither one number nor three.
    """
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(re.fullmatch(r"\s*\d{1,4}\s*", part) for part in parts):
        raise ValueError(f"{text!r}: one number, or smallest,best,largest, for example 1,32,64")
    numbers = [int(part) for part in parts] * (3 if len(parts) == 1 else 1)
    return numbers[0], numbers[1], numbers[2]


def parse_bytes(text: str) -> int:
    """`4G` or `512M` in bytes.

    Raises:
        ValueError: it is no amount of memory.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgG]?)(?:i?[bB])?", text.strip())
    if not match:
        raise ValueError(f"{text!r} is not an amount of memory, for example 4G or 512M")
    return int(float(match[1]) * 1024 ** " kmg".index(match[2].lower() or " "))


def make_build_options(*, model: str | None, **settings: Any) -> BuildOptions:
    """What to build; the other options have the names of the fields.

    Raises:
        CheckpointError: there is no such model.
    """
    from unet_batch.build import BuildOptions
    from unet_batch.model import zoo

    return BuildOptions(zoo.resolve(model), **settings)


_engine = functools.partial(Option, section="Engine")
_build = functools.partial(Option, section="Build")

build_options = Bundle(
    "options",
    make_build_options,
    click.Argument(["model"], metavar="[MODEL]", required=False, shell_complete=complete_model),
    _engine(
        ["--size"],
        metavar="HxW",
        type=Parsed(parse_sizes),
        help="Height and width of the input, or MIN,BEST,MAX for a range.  [default: the model's own]",
    ),
    _engine(
        ["--batch"],
        metavar="MIN,BEST,MAX",
        type=Parsed(parse_batch),
        brief="Pictures in one pass of the network.",
        help="Pictures in one pass: kernels are tuned for BEST. One number fixes all three.  [default: "
        "1,32,32; openvino takes them one by one]",
    ),
    _engine(
        ["--precision"],
        type=click.Choice(("int8", "fp16", "bf16", "fp32")),
        brief="Precision: int8, fp16, bf16 or fp32.",
        help="Precision of the network's body; int8 takes --calibration-images.  [default: fp16; of a graph "
        "its own; openvino: bf16 where the CPU executes it, else fp32]",
    ),
    _engine(
        ["--hardware-compat"],
        type=click.Choice(("none", "ampere+", "same-cc")),
        default="none",
        show_default=True,
        help="Which other GPUs may run the engine, at some cost in speed (tensorrt only).",
    ),
    _engine(
        ["--opset"],
        metavar="N",
        type=click.IntRange(17, 22),
        help="Version of the ONNX operators; 17 is what TensorRT 8.6 reads.  [default: 18]",
    ),
    _build(
        ["--builder"],
        type=click.Choice(("auto", "tensorrt", "tensorrt-rtx", "openvino")),
        default="auto",
        show_default=True,
        brief="What compiles: tensorrt, tensorrt-rtx or openvino.",
        help="What compiles. tensorrt needs the GPU that will run the engine, tensorrt-rtx builds anywhere, "
        "openvino builds for CPUs. auto takes the first that can, in this order.",
    ),
    _build(
        ["--workspace"],
        metavar="SIZE",
        type=Parsed(parse_bytes),
        help="Most scratch memory on the GPU, for example 4G.",
    ),
    _build(
        ["--opt-level"],
        metavar="N",
        type=click.IntRange(0, 5),
        help="0 builds fast, 5 searches longest.  [default: TensorRT's, 3]",
    ),
    _build(
        ["--timing-cache"],
        metavar="FILE",
        help="Kernel timings, to make later builds faster.  [default: one in the engines folder]",
    ),
    _build(
        ["--proof-images"],
        metavar="SOURCE",
        multiple=True,
        brief="Pictures to prove the engine on: your own.",
        help="Pictures to compare with float32 on, up to 100: your own prove most.  [default: drawn scenes; "
        "of --calibration-images those held out]",
    ),
    _build(
        ["--calibration-images"],
        metavar="SOURCE",
        multiple=True,
        brief="Pictures that int8 is calibrated on.",
        help="Pictures that the ranges of int8 are taken from, up to 200, drawn at random; others of them "
        "are held out for the proof.  [default: drawn scenes, for bundled models only]",
    ),
    _build(
        ["--onnx-only"],
        is_flag=True,
        brief="Write the ONNX graph, and stop.",
        help="Write and prove the ONNX graph, and stop.",
    ),
    _build(["--force"], is_flag=True, brief="Build anew.", help="Build even if a fitting engine is there."),
    engines_dir_option("Output"),
    Option(
        ["--triton"],
        section="Output",
        metavar="DIR",
        help="Also write a model repository of Triton Inference Server: DIR/NAME/config.pbtxt and "
        "DIR/NAME/1/model.plan, the next version where the model is there already.",
    ),
)


@click.command(
    "build-engine",
    cls=Command,
    short_help="Compile a model into a proven engine of TensorRT or OpenVINO.",
    epilog="Exit codes: 0 built or there already, 1 only the ONNX graph was written, because nothing "
    "installed builds engines, "
    "2 wrong usage, a failed build, or an engine that failed its proof, 130 interrupted.",
)
@build_options
@option("-q", "--quiet", section="Display", is_flag=True, help="Print errors only.")
@option(
    "--json",
    "as_json",
    section="Display",
    is_flag=True,
    help="Print what was built and proven as JSON on stdout.",
)
def build_engine(options: BuildOptions, quiet: bool, as_json: bool) -> None:
    """Compile a model into an engine of TensorRT or OpenVINO, and prove that it is what was asked for.

    \b
    Examples:
      unet-batch build-engine cars.safetensors
      unet-batch build-engine cars.safetensors --proof-images ./photos --batch 64
      unet-batch build-engine cars.onnx --builder openvino
      unet-batch build-engine --onnx-only --opset 17

    MODEL is a .safetensors file, a bundled model, or an .onnx graph. Without one the bundled model is built.
    The engine is installed only if its arithmetic is in the precision asked for and its masks are equal to
    those in float32: PyTorch's of a checkpoint, ONNX Runtime's of a graph that brings none.
    """
    from unet_batch.build import build_engine as build
    from unet_batch.cli.progress import staged
    from unet_batch.cli.screen import Lines, print_json

    lines = Lines(quiet=quiet, to_stderr=as_json)
    with staged(lines) as progress:
        built = build(options, progress)
    if as_json:
        print_json(_built_as_dict(built))
    _print_built(lines, built)
    if built.missing:
        lines.warn(f"{built.missing}", built.fix)
        raise SystemExit(1)


def _built_as_dict(built: Built) -> dict[str, Any]:
    return {
        "onnx": built.onnx,
        "plan": built.engine.path if built.engine else None,
        "was_there": built.was_there,
        "triton": built.triton,
        "missing": built.missing,
        "fix": built.fix,
        "notes": list(built.notes),
        "shares": [dict(share) for share in built.shares],
        "proofs": dict(built.proofs),
        "sidecar": built.engine.sidecar.as_dict() if built.engine else None,
    }


def _print_built(lines: Lines, built: Built) -> None:
    from unet_batch.cli.text import shown

    if built.onnx:
        lines.line("onnx", shown(built.onnx))
    if built.engine is not None:
        _print_engine(lines, built.engine)
    else:
        _print_proof(lines, built.shares, built.proofs)
    if built.triton:
        lines.line("triton", shown(built.triton))
    for note in built.notes:
        lines.line("note", note)
    if built.was_there:
        lines.line("note", "it was there already and fits (--force builds it again)")


@click.command(cls=Command, short_help="What a checkpoint, ONNX graph or engine says of itself.")
@click.argument("file", metavar="[FILE]", required=False, shell_complete=complete_path)
@click.option("--json", "as_json", is_flag=True, help="Print all of it as JSON.")
def inspect(file: str | None, as_json: bool) -> None:
    """Say what a model file is: its network, classes, terms and training; of an engine also its proof.

    \b
    Examples:
      unet-batch inspect
      unet-batch inspect default
      unet-batch inspect engines/cars-160x240-fp16-1f0c9a7b.plan
      unet-batch inspect u2net.onnx

    FILE is a checkpoint (.safetensors), an ONNX graph, or an engine (.plan, or the .json beside it). Of an
    ONNX graph of another program it says what is seen in it, and the line that imports it. Without a file,
    the bundled models are listed: what each is for, and under which terms.
    """
    from unet_batch.cli.screen import Lines, print_json
    from unet_batch.model import zoo

    lines = Lines(quiet=as_json, to_stderr=False)
    if file is None:
        for name, bundled in zoo.BUNDLED.items():
            lines.line(name, bundled.purpose)
            lines.line("", bundled.terms)
        if as_json:
            print_json({name: asdict(bundled) for name, bundled in zoo.BUNDLED.items()})
        return
    suffix = os.path.splitext(file)[1].lower()
    if suffix in (".plan", ".engine", ".json"):
        from unet_batch.engine import store

        engine = store.load(file)
        lines.line("file", engine.path)
        _print_spec(lines, engine.sidecar.spec)
        _print_engine(lines, engine)
        data = engine.sidecar.as_dict()
        engine.read_plan()  # says so if it is not what was built
    elif suffix == ".onnx":
        data = _inspect_onnx(lines, file)
    else:
        from unet_batch.model import checkpoint

        found = checkpoint.identify(zoo.resolve(file))
        size = sum(os.path.getsize(each) for each in (found.path, found.shared) if each)
        shares = f"with the weights of {os.path.basename(found.shared)}" if found.shared else ""
        lines.line("file", found.path, megabytes(size), shares)
        _print_spec(lines, found.spec)
        data = _print_checkpoint(lines, found)
    if as_json:
        print_json(data)


def _inspect_onnx(lines: Lines, file: str) -> dict[str, Any]:
    from unet_batch.cli.import_graph import describe_foreign
    from unet_batch.engine import onnx_model
    from unet_batch.model import foreign

    if os.path.isfile(file) and foreign.recognise(file) is foreign.ONNX:
        return describe_foreign(lines, file)
    graph = onnx_model.read(file)
    lines.line("file", file, megabytes(len(graph.data)))
    _print_spec(lines, graph.spec)
    return _print_graph(lines, graph)


def _print_checkpoint(lines: Lines, found: ModelFile) -> dict[str, Any]:
    from unet_batch.model import zoo

    card = {section: zoo.card_points(found.path, section) for section in ("Tried on", "Not for")}
    for section, points in card.items():
        for index, point in enumerate(points):
            lines.line("" if index else section.lower(), point)
    lines.line("weights", f"{found.parameters:,} parameters", f"sha256 {found.sha256[:12]}")
    for name, text in _facts(found.spec.training):
        lines.line("", f"{name.replace('_', ' ')}: {text}")
    return {
        **found.as_dict(),
        "tried_on": card["Tried on"],
        "not_for": card["Not for"],
        "training": dict(found.spec.training),
    }


def _print_spec(lines: Lines, spec: ModelSpec) -> None:
    height, width = spec.input_size
    taken = "" if spec.in_channels == 3 else "luminance"
    if spec.channels:
        taken = f"band{'s' * (spec.in_channels > 1)} {','.join(map(str, spec.channels))}"
    channels = f"{spec.in_channels} {plural(spec.in_channels, 'channel')}: {taken}" if taken else ""
    lines.line("model", spec.name, spec.network, f"{height}x{width}", channels)
    means = (
        "the probability of it" if spec.output == "probability" else f"ids 0 to {len(spec.classes.names) - 1}"
    )
    lines.line("classes", ", ".join(spec.classes.names), f"the map holds {means}")
    lines.line("terms", spec.terms or "not stated")


def _print_graph(lines: Lines, graph: OnnxModel) -> dict[str, Any]:
    from unet_batch.engine import onnx_model, proof

    size = f"{graph.size[0]}x{graph.size[1]}" if graph.size else "any size"
    batch = f"{graph.batch} picture a call" if graph.batch else "any batch"
    lines.line("graph", f"opset {graph.opset}, IR {graph.ir_version}", batch, size)
    picture = onnx_model.picture_bytes(graph)
    lines.line("memory", f"a picture takes about {megabytes(picture)} between its layers")
    imported = graph.spec.training.get("imported")
    if graph.spec.architecture == "onnx" and isinstance(imported, Mapping):
        lines.line("source", f"imported from {imported.get('from')}", f"sha256 {graph.source_sha256[:12]}")
        choices, guessed = imported.get("choices", {}), imported.get("guessed", [])
        for option, value in choices.items():
            lines.line("", f"{option} {value}{' (a guess)' if option in guessed else ''}")
    else:
        lines.line("source", f"checkpoint sha256 {graph.source_sha256[:12]}")
    precisions = {name: found.precision for name, found in graph.convolutions.items()}
    share = proof.as_dict(proof.share(graph.convolutions, graph.precision, graph.float32, precisions, "onnx"))
    _print_proof(lines, [share], {})
    facts = {"opset": graph.opset, "ir_version": graph.ir_version, "picture_bytes": picture}
    return {**graph.facts, **facts, "shares": [share]}


def _print_engine(lines: Lines, engine: Engine) -> None:
    from unet_batch.cli.text import clock, shown

    sidecar: Sidecar = engine.sidecar
    recipe, built = sidecar.recipe, sidecar.built
    lines.line(
        "plan", shown(engine.path), megabytes(sidecar.plan_bytes), f"sha256 {sidecar.plan_sha256[:12]}"
    )
    target = f"{built.get('gpu')} ({recipe.target})"
    if recipe.target == "any":
        target = "any CPU" if recipe.on_cpu else "any GPU the library supports"
    lines.line(
        "builder",
        f"{recipe.flavour} {recipe.version}",
        f"{clock(float(built.get('seconds', 0)))}",
        f"for {target}",
    )
    lines.line("profile", str(recipe.profile))
    if recipe.options:
        lines.line("options", ", ".join(f"{name} {value}" for name, value in recipe.options.items()))
    if isinstance(calibrated := built.get("calibration"), Mapping):
        lines.line(
            "calibrated",
            f"with {calibrated['source']}",
            f"sha256 {calibrated['sha256'][:12]}",
            f"{calibrated['held_out']} held out for the proof" if calibrated["held_out"] else "",
        )
    if equal := built.get("transposed"):
        lines.line("transposed", f"convolutions are {equal}")
    _print_proof(lines, sidecar.shares, sidecar.proofs)
    if recipe.on_cpu:
        lines.line("verified", "the engine itself was run on a CPU; another one proves it again")
    elif sidecar.verified_on_gpu:
        lines.line("verified", "the plan itself was run on a GPU")
    else:
        lines.line("verified", "not yet: the first run on a GPU completes the proof")


def _print_proof(lines: Lines, shares: Sequence[Mapping[str, Any]], proofs: Mapping[str, Any]) -> None:
    for share in shares[-1:]:  # the one counted last is the nearest to what runs
        sources = ", ".join(dict.fromkeys(str(each["source"]) for each in shares))
        lines.line(
            "precision",
            f"{share['body']:.2%} of the body's arithmetic is {share['asked']}"
            if share["asked"] != "int8"
            else f"{share['overall']:.2%} of the arithmetic is int8",
            f"{share['in_precision']} of {share['convolutions']} convolutions",
            f"kept in float32: {', '.join(share['kept'])}" if share["kept"] else "",
            f"counted in: {sources}",
        )
    for name, proof in proofs.items():
        if not isinstance(proof, Mapping):
            lines.line(name, str(proof))
            continue
        worst = min(proof.values(), key=lambda parity: parity["dice"])
        off = max(
            (parity["largest"] for parity in proof.values() if parity["largest"] is not None), default=None
        )
        lines.line(
            "parity",
            f"Dice {worst['dice']:.5f} with {worst.get('reference', 'PyTorch')} float32",
            f"worst picture {min(parity['worst'] for parity in proof.values()):.5f}",
            f"{max(parity['pixels'] for parity in proof.values()):.4%} of pixels differ",
            "" if off is None else f"probability off by {off:.3f} at most",
        )
        counts = ", ".join(f"{parity['pictures']} pictures at {batch}" for batch, parity in proof.items())
        lines.line("", f"{name}: {counts}")


def _facts(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts of a training as lines of text; nested ones are spelled out."""
    for name, value in facts.items():
        if isinstance(value, dict):
            flat = {
                key: part
                for key, part in value.items()
                if part is not None and not isinstance(part, (dict, list))
            }
            if flat:
                yield name, ", ".join(f"{key} {_short(part)}" for key, part in flat.items())
            yield from _facts(
                {f"{name} {key}": part for key, part in value.items() if isinstance(part, dict)}
            )
        elif name == "channels":
            yield name, ",".join(map(str, value))
        elif isinstance(value, list):
            yield from ((name, _short(part)) for part in value)
        else:
            yield name, _short(value)


def _short(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text if len(text) <= 90 else text[:87] + "..."
