"""A module with the calls of TensorRT's builder that records what it is asked for and builds nothing."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace
from typing import Any

import onnx


class Network:
    """What the parser has read."""

    def __init__(self, flags: int) -> None:
        self.flags, self.data = flags, b""

    @property
    def num_inputs(self) -> int:
        return len(onnx.load_from_string(self.data).graph.input)

    def get_input(self, index: int) -> SimpleNamespace:
        value = onnx.load_from_string(self.data).graph.input[index]
        shape = [dim.dim_value or -1 for dim in value.type.tensor_type.shape.dim]
        return SimpleNamespace(name=value.name, shape=shape)


class Config:
    def __init__(self) -> None:
        self.cleared: list[str] = []
        self.profiles: list[dict] = []
        self.capability, self.cache, self.progress_monitor = None, None, None
        self.num_compute_capabilities = 0

    def clear_flag(self, flag: str) -> None:
        self.cleared.append(flag)

    def set_compute_capability(self, capability: int, index: int) -> None:
        self.capability = capability

    def add_optimization_profile(self, profile: dict) -> None:
        self.profiles.append(profile)

    def create_timing_cache(self, data: bytes) -> SimpleNamespace:
        return SimpleNamespace(serialize=lambda: data + b"timed")

    def set_timing_cache(self, cache: SimpleNamespace, ignore_mismatch: bool) -> None:
        self.cache = cache

    def get_timing_cache(self) -> SimpleNamespace:
        return self.cache


class Profile(dict):
    def set_shape(self, name: str, *shapes: tuple[int, ...]) -> None:
        self[name] = shapes


class Parser:
    """Reads anything, unless the module's plan is that it cannot."""

    num_errors = 1
    plan: Any = None

    def __init__(self, network: Network, log: Any) -> None:
        self.network = network

    def parse(self, data: bytes) -> bool:
        self.network.data = data
        return self.plan != "unreadable"

    def get_error(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(
            node_operator=lambda: "Odd", node_name=lambda: "node 7", desc=lambda: "has no importer"
        )


class Builder:
    """Gives the module's plan, after two steps; None is a failure that is logged."""

    plan: Any = None
    made: list[tuple[Network, Config]]

    def __init__(self, log: Any) -> None:
        self.log = log

    def create_network(self, flags: int) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> Any:
        self.made.append((network, config))
        monitor = config.progress_monitor
        monitor.phase_start("Build", None, 2)
        monitor.phase_start("inner", "Build", 9)
        for step in range(2):
            if not monitor.step_complete("Build", step):
                return None
        monitor.phase_finish("Build")
        self.log.log("verbose", "Layers:\nName: a, LayerType: gemm\nName: b, LayerType: wait\n\nI/O Tensors:")
        if self.plan is None:
            self.log.log("error", "no kernel for node 7")
        return self.plan


def stand_in(kind: str, version: str, plan: Any = b"an engine") -> ModuleType:
    """``made`` of the module lists the network and the configuration of each build."""
    module, made = ModuleType(kind), []
    severities = {"ERROR": "error", "INTERNAL_ERROR": "internal", "WARNING": "warning"}
    parts = {
        "__version__": version,
        "made": made,
        "Builder": type("Builder", (Builder,), {"plan": plan, "made": made}),
        "OnnxParser": type("OnnxParser", (Parser,), {"plan": plan}),
        "BuilderFlag": SimpleNamespace(TF32="tf32"),
        "ProfilingVerbosity": SimpleNamespace(DETAILED="detailed"),
        "NetworkDefinitionCreationFlag": SimpleNamespace(STRONGLY_TYPED=0),
        "ComputeCapability": SimpleNamespace(__members__={"NONE": 0, "SM86": 86, "SM89": 89}),
        "ILogger": type("ILogger", (), severities),
        "IProgressMonitor": type("IProgressMonitor", (), {}),
    }
    for name, part in parts.items():
        setattr(module, name, part)
    return module
