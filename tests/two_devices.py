"""Two devices that are none: a model whose blocks lie on both is measured as on the processor.

``python tests/two_devices.py {cpu,split}`` prints numbers as JSON, in a process of its own, for it
changes PyTorch. A tensor on a made-up device holds one of the processor; where two devices meet in
one operation that PyTorch refuses on GPUs, it is refused here. Only forward passes work.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import torch
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

aten: Any = torch.ops.aten
ACROSS = {aten._to_copy.default, aten.copy_.default, aten._local_scalar_dense.default}
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten._index_put_impl_.default}


class Backend(_DummyBackendModule):  # type: ignore[misc]
    """Two devices of the kind ``sim``."""

    def device_count(self) -> int:
        return 2

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend("sim", backend_module=Backend())


class Sim(torch.Tensor):
    """A tensor on ``sim:0`` or ``sim:1``; ``raw`` is what it holds."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls: type[Sim], raw: torch.Tensor, device: torch.device) -> Sim:
        found = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=device,
        )
        found.raw = raw.detach()
        return found

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType]

    def tolist(self) -> Any:
        return self.raw.tolist()

    def data_ptr(self) -> int:
        return self.raw.data_ptr()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a tensor on a device cannot be converted to numpy")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Simulated(TorchDispatchMode):
    """Also what makes tensors on a made-up device runs here."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def place(device: Any) -> torch.device:
    found = torch.device(device)
    return torch.device("sim", 0) if found.type == "sim" and found.index is None else found


def check(func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
    """Refuse what PyTorch refuses on GPUs: only numbers and indices may lie on the processor."""
    if func in ACROSS:
        return
    if func in INDEXING:
        indices = [index for index in args[1] if index is not None]
        tensors = [args[0], *(index for index in indices if index.device.type != "cpu"), *args[2:3]]
    devices = {one.device for one in tensors if isinstance(one, Sim) or one.dim()}
    if len(devices) > 1:
        raise RuntimeError(f"{func}: tensors on {sorted(map(str, devices))}")


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation on what the tensors hold."""
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    sims = [one for one in tensors if isinstance(one, Sim)]
    asked = None if kwargs.get("device") is None else place(kwargs["device"])
    if not sims and (asked is None or asked.type != "sim"):
        return func(*args, **kwargs)
    if func._can_decompose():
        with Simulated():
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    if func is aten._fused_sdp_choice.default:
        return 0  # the plain kernel
    check(func, args, tensors)
    plain, named = tree_map(lambda one: getattr(one, "raw", one), (args, kwargs))
    if func is aten.copy_.default:
        plain[0].copy_(plain[1])
        return args[0]
    device = sims[0].device if asked is None else asked
    if asked is not None:
        named = {**named, "device": torch.device("cpu")}
    found = func(*plain, **named)
    held = {id(one.raw): one for one in sims} if func._schema.is_mutable else {}

    def wrapped(one: Any) -> Any:
        if not isinstance(one, torch.Tensor) or device.type != "sim":
            return one
        return held[id(one)] if id(one) in held else Sim(one, device)

    return tree_map(wrapped, found)


def no_inference(mode: Any = True) -> Any:
    """Inference tensors cannot be simulated."""
    if callable(mode):
        return torch.no_grad()(mode)
    return torch.no_grad() if mode else contextlib.nullcontext()


def made_there(make: Any) -> Any:
    """``torch.tensor`` and the like for a made-up device."""

    def made(data: Any, *args: Any, device: Any = None, **more: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != "sim":
            return make(data, *args, device=device, **more)
        return (data if isinstance(data, torch.Tensor) else make(data, *args, **more)).to(device)

    return made


_device_constructors()  # kept as they are: they know the functions that are replaced here
torch.inference_mode = no_inference  # type: ignore[assignment, misc]
torch.tensor, torch.as_tensor = made_there(torch.tensor), made_there(torch.as_tensor)


def measured(split: bool) -> dict[str, Any]:
    """Numbers of many functions on ``tiny``, its blocks on two devices or all on the processor."""
    from accelerate import dispatch_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import refusal_cliff as rc
    from refusal_cliff.answers.evaluate import log_likelihoods
    from refusal_cliff.controls import directions, second_reading
    from refusal_cliff.data.traces import closed
    from refusal_cliff.generate.again import answer_again
    from refusal_cliff.heads.effects import head_effects
    from refusal_cliff.heads.joint import AnswerShifts, JointEffects
    from refusal_cliff.model.subject import Head, subject_of
    from refusal_cliff.organisms import embedded_path
    from refusal_cliff.repair.loss import is_exact

    path = str(embedded_path("tiny"))
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    if split:
        blocks = model.config.num_hidden_layers
        names = [name for name, _ in model.model.named_children() if name != "layers"]
        parts: dict[str, Any] = {f"model.{name}": "sim:0" for name in names}
        parts |= {"model.norm": "sim:1", "lm_head": "sim:0"}
        parts |= {f"model.layers.{i}": f"sim:{int(i >= blocks // 2)}" for i in range(blocks)}
        model = dispatch_model(model, parts, main_device=torch.device("sim", 0), force_hooks=True)
    subject = subject_of("tiny", model, AutoTokenizer.from_pretrained(path))
    config = rc.GenerationConfig(max_new_tokens=110, batch_size=80)
    traces = rc.ask(subject, rc.organism_prompts("validation", 50), config)
    probes = rc.fit_probes(subject, traces)
    some, heads = closed(list(traces))[:6], [Head(7, 7), Head(3, 2)]
    sets = [tuple(heads), tuple(heads[:1])]
    effects = head_effects(subject, some, probes.chosen, attributed=False)
    again = answer_again(subject, [some[0]] * 2, config, sets)
    margin = second_reading._margin(subject, list(traces))
    texts = [(one.token_ids, one.spans.prompt) for one in some if one.spans is not None]
    return {
        "answers": [one.response for one in traces],
        "again": [one.response for one in again],
        "scores": [float(one.logits.sum()) for one in rc.score_traces(subject, some, probes)],
        "causal": effects.causal.sum(0).flatten().tolist(),
        "direct": effects.direct.sum(0).flatten().tolist(),
        "joint": JointEffects(subject, some, probes.chosen).of(sets).flatten().tolist(),
        "shifts": AnswerShifts(subject, some).of(sets).flatten().tolist(),
        "margin": [] if margin is None else margin.tolist(),
        "rows": directions.first_token_rows(subject, some, True).flatten().tolist(),
        "texts": log_likelihoods(subject, texts).tolist(),
        "exact": is_exact(subject.model),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    with Simulated():
        print(json.dumps(measured(sys.argv[1] == "split")))
