"""Made-up clusters as the server's `TopResponse` JSON, the same for the same arguments."""

import math
from typing import Any

GIB = 1024**3


def top_message(*, nodes: int = 3, gpus_per_node: int = 4, workloads: int = 12, beat: int = 0) -> dict[str, Any]:
    """One beat; figures sway with `beat`."""
    return {
        "time": f"2026-01-02T03:{4 + beat // 30:02d}:{beat % 30 * 2:02d}Z",
        "nodes": [_node(n, gpus_per_node, beat) for n in range(nodes)],
        "gpus": [_gpu(n, g, beat, gpus_per_node) for n in range(nodes) for g in range(gpus_per_node)],
        "containers": [_container(w, nodes, beat) for w in range(workloads)],
    }


def sway(seed: float, beat: int) -> float:
    return 0.5 + 0.48 * math.sin(seed * 1.7 + beat / 5)


def _node(n: int, gpus: int, beat: int) -> dict[str, Any]:
    return {
        "name": f"node{n:02d}",
        "phase": "READY" if n != 2 else "NOT_READY",
        "capacity": {"cpuMillis": "32000", "memoryBytes": str(256 * GIB), "gpus": gpus},
        "allocated": {"cpuMillis": "24000", "memoryBytes": str(160 * GIB), "gpus": gpus * 3 // 4},
        "usage": {
            "cpu": sway(n, beat),
            "memoryUsedBytes": str(int(256 * GIB * sway(n + 0.5, beat))),
            "diskUsedBytes": str(300 * GIB),
            "diskTotalBytes": str(900 * GIB),
            "load1": round(32 * sway(n, beat), 2),
        },
    }


def _gpu(n: int, g: int, beat: int, gpus: int) -> dict[str, Any]:
    held = g < gpus * 3 // 4
    return {
        "node": f"node{n:02d}",
        **({"index": g} if g else {}),
        "product_name": "NVIDIA A100-SXM4-40GB",
        "usage": {
            "uuid": f"GPU-{n}-{g}",
            "utilization": sway(n * 8 + g, beat) if held else 0.0,
            "memoryUsedBytes": str(int(40 * GIB * sway(n + g, beat)) if held else 0),
            "memoryTotalBytes": str(40 * GIB),
            "temperatureC": int(35 + 50 * sway(n * 8 + g, beat)) if held else 31,
            "powerW": 60 + 300 * sway(n * 8 + g, beat) if held else 52.0,
            "powerLimitW": 400.0,
        },
        **({"container": f"vision/train-{n}.0.1"} if held else {}),
    }


def _container(w: int, nodes: int, beat: int) -> dict[str, Any]:
    return {
        "name": f"train-{w}.0.1",
        "group": ("vision", "speech", "robotics")[w % 3],
        "workload": f"train-{w}",
        "node": f"node{w % nodes:02d}",
        "phase": "PULLING" if w == 7 else "RUNNING",
        "allocated": {"cpuMillis": "8000", "memoryBytes": str(32 * GIB), "gpus": 1 if w < 9 else 0},
        "usage": {
            "uid": f"uid-{w}",
            "cpuCores": 8 * sway(w, beat),
            "memoryBytes": str(int(32 * GIB * sway(w + 0.3, beat))),
            "memoryLimitBytes": str(32 * GIB),
            "pids": str(12 + w),
            "netRxBytes": str(beat * 2_000_000 * (w + 1)),
            "netTxBytes": str(beat * 90_000 * (w + 1)),
            "blockReadBytes": str(beat * 4_000_000),
            "blockWriteBytes": str(beat * 1_000),
            **({"pull": {"currentBytes": "350", "totalBytes": "1000"}} if w == 7 else {}),
        },
        "startedAt": f"2026-01-0{1 + w % 2}T0{w % 3}:00:00.123456789Z",
    }


PROCESSES = {
    "containers": [
        {
            "container": "train-0.0.1",
            "node": "node00",
            "titles": ["PID", "USER", "%CPU", "%MEM", "COMMAND"],
            "rows": [
                {"cells": ["4711", "alice", "98.3", "12.0", "python main.py --epochs 90 --data /data/imagenet"]},
                {"cells": ["4712", "alice", "3.1", "1.2", "python -c from multiprocessing.spawn import spawn_main"]},
                {"cells": ["4790", "alice", "0.0", "0.0", "sh -c tail -f log"]},
            ],
        }
    ]
}
