"""Every kernel compiles for the GPUs it is made for; that needs none of them."""

import os
import re

import pytest

triton = pytest.importorskip("triton", reason="the kernels need the package triton")
compiler = pytest.importorskip("triton.backends.compiler")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets in this process, and compiles nothing", allow_module_level=True)

from triton.compiler import ASTSource  # noqa: E402
from triton.experimental.gluon import language as gl  # noqa: E402
from triton.experimental.gluon._runtime import GluonASTSource  # noqa: E402

from kernels.attention_kernel import attention_kernel  # noqa: E402
from kernels.hopper_kernel import LOADING, REGISTERS, linear_pingpong_kernel  # noqa: E402
from kernels.linear_kernel import linear_kernel  # noqa: E402
from kernels.rows_kernel import norm_kernel, quantize_kernel  # noqa: E402
from kernels.tiles import HOPPER_BYTES, HOPPER_TILES, RESIDENT, ProductTile, steps_that_fit  # noqa: E402

CAPABILITIES = [80, 89, 90, 100]
FLAGS = {"IS_INTERPRETED": False}


def compile_for(capability: int, kernel, types: dict[str, str], constants: dict[str, object]):
    """Return the compiled kernel; arguments without a type are int32."""
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    constants = {**FLAGS, "PDL": capability >= 90, **constants}
    signature.update(dict.fromkeys(constants, "constexpr"))
    target = compiler.GPUTarget("cuda", capability, 32)
    source = ASTSource(kernel, signature, constants)
    return triton.compile(source, target=target, options={"num_warps": 4, "num_stages": 2})


def has_int8_product(capability: int, ptx: str) -> bool:
    """Return whether the tensor cores multiply INT8: wgmma on 9.0, mma elsewhere (10.0's own takes no INT8)."""
    name = "wgmma.mma_async" if capability == 90 else "mma.sync"
    return any(name in line and ".s8" in line for line in ptx.splitlines())


@pytest.mark.parametrize(
    ("capability", "kind"),
    [(each, "gelu to int8") for each in CAPABILITIES] + [(each, "gated, residual to half") for each in (80, 90)],
)
def test_linear(capability: int, kind: str) -> None:
    is_gated, tma = kind.startswith("gated"), capability >= 90
    out = "fp16" if is_gated else "i8"
    operand, result = ("tensordesc<i8[64, 64]>", f"tensordesc<{out}[64, 32]>") if tma else ("*i8", f"*{out}")
    types = {"x": operand, "weight": operand, "out": result, "residual": result}
    types |= dict.fromkeys(("scale", "bias", "factor"), "*fp32")
    types |= dict.fromkeys(("residual_scale", "out_scale", "out_inverse"), "fp32")
    constants = {"ACTIVATION": 5 if is_gated else 2, "HAS_BIAS": True, "RESIDUAL": is_gated, "HAS_FACTOR": not is_gated,
                 "OUT_INT8": not is_gated, "GATED": is_gated, "PARTS": 2, "TMA": tma, "BM": 64, "BN": 64, "BK": 64,
                 "FLATTEN": True, "EVEN": is_gated}  # fmt: skip
    assert has_int8_product(capability, compile_for(capability, linear_kernel, types, constants).asm["ptx"])


# (result, residual, gated): the last two have a residual where the result is staged, and columns that end early.
HOPPER_KINDS = {"gelu to int8": ("i8", None, False), "codes to half": ("fp16", "i8", False),
                "gated": ("i8", None, True), "half to half": ("fp16", "fp16", False),
                "bfloat16": ("bf16", "bf16", False)}  # fmt: skip
GLUON = {"i8": gl.int8, "fp16": gl.float16, "bf16": gl.bfloat16}


@pytest.mark.parametrize(("tile", "kind"), [
    (tile, kind) for place, tile in enumerate(HOPPER_TILES) for kind in list(HOPPER_KINDS)[: 3 + 2 * (place in (0, 5))]
], ids=str)  # fmt: skip
def test_the_product_of_two_groups_in_turn_keeps_two_steps_in_flight(tile: ProductTile, kind: str) -> None:
    out, residual, is_gated = HOPPER_KINDS[kind]
    to_int8, even = out == "i8", kind != "bfloat16"
    width = tile.block_n // (2 if is_gated else 1)
    blocks = {"x": ("i8", tile.block_m, tile.block_k), "weight": ("i8", tile.block_n, tile.block_k),
              "out": (out, tile.block_m, width), "residual": (residual or out, tile.block_m, width)}  # fmt: skip
    types = {}
    for name, (item, *shape) in blocks.items():
        layout = gl.NVMMASharedLayout.get_default_for(shape, GLUON[item])
        types[name] = f"tensordesc<{item}{shape},{layout!r}>"
    types |= dict.fromkeys(("scale", "bias", "factor"), "*fp32")
    types |= dict.fromkeys(("residual_scale", "out_scale", "out_inverse"), "fp32")
    column_bytes = sum(GLUON[item].primitive_bitwidth // 8 for item in {out, residual or out}) / (2 if is_gated else 1)
    stages, panel = steps_that_fit(tile, column_bytes, 768)
    registers, multiplying = REGISTERS[tile.num_warps]
    constants = {"ACTIVATION": 3 if to_int8 else 0, "HAS_BIAS": True, "RESIDUAL": residual is not None,
                 "HAS_FACTOR": to_int8, "OUT_INT8": to_int8, "GATED": is_gated, "PDL": even, "BM": tile.block_m,
                 "BN": tile.block_n, "BK": tile.block_k, "STAGES": stages, "EVEN": even, "PANEL": panel,
                 "WARPS": tile.num_warps, "MULTIPLYING": multiplying, "LOADING": LOADING}  # fmt: skip
    signature = {name: types.get(name, "i32") for name in linear_pingpong_kernel.arg_names}
    signature.update(dict.fromkeys(constants, "constexpr"))
    found = triton.compile(
        GluonASTSource(linear_pingpong_kernel, signature, constants),
        target=compiler.GPUTarget("cuda", 90, 32),
        options={"num_warps": tile.num_warps, "maxnreg": registers},
    )  # fmt: skip
    ptx = found.asm["ptx"]
    assert has_int8_product(90, ptx) and re.search(r"wgmma\.wait_group\.sync\.aligned\s+1;", ptx) and stages >= 3
    assert (panel == 6) == (tile.schedule == RESIDENT and (column_bytes < 3 or tile.block_m == 64))
    assert found.metadata.shared <= HOPPER_BYTES and found.metadata.num_warps == 2 * tile.num_warps + 4


@pytest.mark.parametrize(("capability", "rounds"), [*((each, True) for each in CAPABILITIES), (90, False)])
def test_attention(capability: int, rounds: bool) -> None:
    half = "*i8" if rounds else "*fp16"
    types = {"q": half, "k": half, "v": half, "mask": "*fp32", "out": "*i8", "factor": "*fp32"}
    types |= dict.fromkeys(("score_scale", "value_scale", "out_scale", "out_inverse"), "fp32")
    constants = {"SHARE": 2, "MASK": 1, "CAUSAL": True, "ROUND": rounds, "IS_INT8": rounds, "HAS_FACTOR": True,
                 "OUT_INT8": True, "ONE_BLOCK": False, "HEAD_DIM": 64, "BLOCK_D": 64, "BM": 64, "BN": 32}  # fmt: skip
    ptx = compile_for(capability, attention_kernel, types, constants).asm["ptx"]
    assert has_int8_product(capability, ptx) or not rounds


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_rows(capability: int) -> None:
    types = {"x": "*fp16", "residual": "*fp16", "weight": "*fp16", "bias": "*fp16", "factor": "*fp32", "codes": "*i8",
             "kept": "*fp16", "out": "*i8", "eps": "fp32", "scale": "fp32", "inverse": "fp32"}  # fmt: skip
    norm = {"RMS": False, "HAS_RESIDUAL": True, "HAS_BIAS": True, "HAS_FACTOR": True, "KEEP": 1, "ROWS": 1,
            "WIDTH": 512, "REST": 256, "EVEN": True}  # fmt: skip
    compile_for(capability, norm_kernel, types, norm)
    compile_for(capability, quantize_kernel, types, {"HAS_FACTOR": True, "ROWS": 4, "WIDTH": 1024})


@pytest.mark.parametrize("overlapped", [False, True])
def test_the_next_kernel_may_start_before_this_one_reads(overlapped):
    types = {"x": "*fp16", "factor": "*fp32", "out": "*i8", "scale": "fp32", "inverse": "fp32"}
    found = compile_for(90, quantize_kernel, types, {"HAS_FACTOR": True, "ROWS": 4, "WIDTH": 1024, "PDL": overlapped})
    words = ("griddepcontrol.launch_dependents", "griddepcontrol.wait", "ld.global", "st.global")
    places = {word: found.asm["ptx"].find(word) for word in words}
    order = [word for word in sorted(words, key=places.__getitem__) if places[word] >= 0]
    assert order == list(words if overlapped else words[2:])
