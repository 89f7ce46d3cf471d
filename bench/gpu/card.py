"""What a result must say of the card it was measured on; nothing that names the machine."""

import subprocess

import embstore as es
from embstore.engines import kernels

QUERIES = {
    "clock_now_mhz": "clocks.sm",
    "clock_max_mhz": "clocks.max.sm",
    "memory_clock_mhz": "clocks.mem",
    "memory_clock_max_mhz": "clocks.max.mem",
    "power_limit_w": "power.limit",
    "mig": "mig.mode.current",
    "ecc": "ecc.mode.current",
}


def facts(clock):
    """Return the card's name, memory, driver and clocks, as far as they can be had."""
    if clock.is_emulated:
        return {"name": "emulated on the CPU: its times mean nothing"}
    status = es.cuda_status()
    device = status.devices[clock.index]
    free, total = clock.cupy.cuda.runtime.memGetInfo()
    found = {
        "name": device.name,
        "compute_capability": "{}.{}".format(*device.compute_capability),
        "memory_gb": round(total / 1e9, 1),
        "memory_free_gb": round(free / 1e9, 1),
        "multiprocessors": int(
            clock.cupy.cuda.Device(clock.index).attributes["MultiProcessorCount"]
        ),
        "cuda_of_driver": status.driver,
        "cuda_runtime": status.runtime,
        "nvrtc": status.nvrtc,
        "cupy": status.cupy,
    }
    return found | smi(clock.index)


def smi(index):
    """Return what nvidia-smi says of driver and clocks; empty where it does not."""
    names = ",".join(["driver_version", *QUERIES.values()])
    command = [
        "nvidia-smi",
        f"--id={index}",
        f"--query-gpu={names}",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return {"clocks": "nvidia-smi does not say"}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(["driver", *QUERIES], values, strict=False))


def resources(clock, is_quick=False):
    """Return registers and spilled bytes of each kernel of the engine, by name."""
    if is_quick:
        return {"not measured": "to compile all kernels anew takes longer than a quick run"}
    if clock.is_emulated:
        return {"not measured": "an emulator has no registers"}
    arch = int(clock.cupy.cuda.Device(clock.index).compute_capability)
    return {
        name: {"registers": r.registers, "spill_bytes": r.spill_bytes, "stack_bytes": r.stack_bytes}
        for name, r in sorted(kernels.resources(arch).items())
    }


def resource_lines(found):
    """Yield the kernels that keep fewer than all threads resident, and all that spill."""
    if "not measured" in found:
        yield f"registers: not measured: {found['not measured']}"
        return
    spilling = [name for name, r in found.items() if r["spill_bytes"]]
    yield f"registers of {len(found)} kernels; those that spill: {', '.join(spilling) or 'none'}"
    many = sorted(found, key=lambda name: -found[name]["registers"])
    shown = [f"{name} {found[name]['registers']}" for name in many if found[name]["registers"] > 32]
    yield f"  above 32, so not all threads are resident at once: {', '.join(shown) or 'none'}"
