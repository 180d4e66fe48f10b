"""What a decoder's blocks are made of, found by running it once on a few tokens.

No table of architectures: the blocks are the decoder's list of layers; what a block adds to the
residual stream, and how, is read off one small forward pass. A block is understood if, and only if,
its output is a sum of its input and of the outputs of its parts, each times one number, to the
precision of the weights. Whatever is not so understood is an error that says which block and why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from refusal_cliff.errors import RefusalCliffError
from refusal_cliff.model.blocks import Block, Part, decoder_of, in_features, input_device
from refusal_cliff.model.rounding import tolerance

_LENGTHS = (9, 5)
_EXACT = 1e-3
_PASSIVE = (nn.Dropout, nn.Identity)


@dataclass
class _Call:
    """What a module was given and what it returned, in the small forward pass."""

    module: nn.Module
    given: list[torch.Tensor]
    returned: torch.Tensor
    softmax_heads: int = 0


def find_blocks(name: str, model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's list of layers.

    Raises:
        RefusalCliffError: There is none.
    """
    wanted = int(model.config.get_text_config().num_hidden_layers)
    for module in decoder_of(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return list(module)
    raise RefusalCliffError(
        f"{name} has no list of {wanted} blocks that can be found, so there are no heads to "
        f"measure (it is a {type(model).__name__}). Use a decoder-only transformer."
    )


@torch.inference_mode()
def analyse(name: str, model: PreTrainedModel) -> tuple[Block, ...]:
    """Find what each block adds to the residual stream, and check that it adds up.

    Runs one batch of two short rows and each row alone.

    Args:
        name: What the user called the model; for messages.
        model: In evaluation mode.

    Raises:
        RefusalCliffError: A block is not a sum of its parts, or gives something else for a row in a
            batch than for the row alone.
    """
    layers = find_blocks(name, model)
    rows = few_tokens(int(model.config.get_text_config().vocab_size))
    calls = _run(model, layers, rows)
    allowed = tolerance(model.dtype)
    if getattr(model, "is_quantized", False):  # 8-bit layers round activations too
        allowed = max(allowed, tolerance(torch.bfloat16))
    valid = torch.cat([torch.arange(max(_LENGTHS)) < length for length in _LENGTHS])
    blocks = []
    for number, (layer, of_block) in enumerate(zip(layers, calls, strict=True), start=1):
        block, error = _block_of(name, number, layer, of_block, valid)
        _check_visible(name, block)
        if error > allowed:
            raise RefusalCliffError(
                f"Block {number} of {name} ({type(layer).__name__}) is not a sum of its input and "
                f"its parts ({', '.join(_part_names(block))}): they leave {error:.0%} of its "
                "output unexplained. Heads of this architecture cannot be measured yet."
            )
        blocks.append(block)
    _check_single(name, model, layers, rows, calls, allowed)
    if not any(block.n_heads for block in blocks):
        raise RefusalCliffError(
            f"No block of {name} has softmax attention whose heads can be separated "
            f"({blocks[0].skipped}; it is a {type(model).__name__}). Use a transformer."
        )
    return tuple(blocks)


def few_tokens(vocabulary: int) -> list[torch.Tensor]:
    """Two short rows of tokens that are not special."""
    drawn = torch.Generator().manual_seed(0)
    low = min(vocabulary // 2, 64)
    return [torch.randint(low, vocabulary, (length,), generator=drawn) for length in _LENGTHS]


@contextmanager
def _visible_attention(model: PreTrainedModel) -> Iterator[None]:
    """Flash and other fused attention hides its softmax: look at the plain one meanwhile."""
    chosen = str(model.config._attn_implementation)  # pyright: ignore[reportPrivateUsage]
    if chosen in ("eager", "sdpa"):
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(chosen)


class _SoftmaxHeads(TorchFunctionMode):
    """Notices softmax over keys, and how many heads it has, for each module that is running."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("scaled_dot_product_attention", "softmax") and args:
            states = args[0]
            if isinstance(states, torch.Tensor) and states.dim() == 4:
                self.running = [max(heads, int(states.shape[1])) for heads in self.running]
        return func(*args, **(kwargs or {}))


def _first(value: Any) -> Any:
    while isinstance(value, tuple | list) and value:
        value = value[0]
    return value


@contextmanager
def _recorded(
    modules: Sequence[nn.Module], width: int, tokens: tuple[int, int], seen: _SoftmaxHeads
) -> Iterator[list[_Call]]:
    """Record each call of ``modules`` that returns residual-shaped states."""
    calls: list[_Call] = []
    size = tokens[0] * tokens[1] * width

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.running.append(0)

    def after(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        heads = seen.running.pop()
        returned = _first(output)
        if not isinstance(returned, torch.Tensor) or returned.numel() != size:
            return
        given = [
            value.detach().reshape(-1, width).double().cpu()
            for value in (*args, *kwargs.values())
            if isinstance(value, torch.Tensor) and value.numel() == size
        ]
        states = returned.detach().reshape(-1, width).double().cpu()
        calls.append(_Call(module, given, states, heads))

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            stack.enter_context(module.register_forward_hook(after, with_kwargs=True))
        yield calls


def _run(
    model: PreTrainedModel, layers: Sequence[nn.Module], rows: Sequence[torch.Tensor]
) -> list[list[_Call]]:
    """Calls of each block, of its children and of the linear layers in these; its own last."""
    ids = pad_sequence(list(rows), batch_first=True, padding_value=float(rows[0][0]))
    shape = (len(rows), ids.shape[1])
    width = int(model.config.get_text_config().hidden_size)
    seen = _SoftmaxHeads()
    device = input_device(model)
    with ExitStack() as stack:
        recorded = [
            stack.enter_context(_recorded(_watched(layer), width, shape, seen)) for layer in layers
        ]
        stack.enter_context(_visible_attention(model))
        stack.enter_context(seen)
        try:
            decoder_of(model)(input_ids=ids.to(device), use_cache=False)  # as `capture` reads
        except (RuntimeError, ValueError, TypeError, LookupError) as error:
            raise RefusalCliffError(
                f"The model ({type(model).__name__}) cannot read {shape[1]} tokens: {error}. Its "
                "config.json does not describe these weights, or the architecture needs other "
                "inputs than text."
            ) from error
    return recorded


def _watched(layer: nn.Module) -> list[nn.Module]:
    children = list(layer.children())
    inner = [module for child in children for module in child.modules() if _is_linear(module)]
    return [*dict.fromkeys([*children, *inner]), layer]


def _block_of(
    name: str,
    number: int,
    layer: nn.Module,
    calls: Sequence[_Call],
    valid: torch.Tensor,
) -> tuple[Block, float]:
    """The block, and how much of its output stays unexplained."""
    own = next((call for call in reversed(calls) if call.module is layer), None)
    if own is None or not own.given:
        raise RefusalCliffError(
            f"Block {number} of {name} ({type(layer).__name__}) does not take and return one "
            "residual stream (hyper-connections?). Such a model cannot be measured yet."
        )
    direct = [child for child in layer.children() if not isinstance(child, _PASSIVE)]
    children = [call for call in calls if call.module in direct]
    terms = _terms(children)
    states = [own.given[0], *((norm or call).returned for call, norm in terms)]
    factors, error = _factors(own.returned[valid], [state[valid] for state in states])
    parts: list[Part] = []
    attention, projection, heads, skipped = None, None, 0, ""
    for (call, norm), factor in zip(terms, factors[1:], strict=True):
        gain = None if norm is None else gain_of(name, norm, call)
        part = Part(call.module, norm and norm.module, factor, gain)
        parts.append(part)
        if call.softmax_heads and abs(part.factor) > 0:
            attention = part
            projection, heads, skipped = _projection_of(call, calls)
    names = ", ".join(type(part.module).__name__ for part in parts)
    if attention is None:
        skipped = f"no softmax attention, only {names or 'nothing that can be told apart'}"
    others = tuple(part for part in parts if part is not attention)
    block = Block(number, layer, attention, others, factors[0], projection, heads, skipped)
    return block, error


def _terms(children: Sequence[_Call]) -> list[tuple[_Call, _Call | None]]:
    """What may be added to the residual stream: parts' outputs, after a norm that takes them."""
    norms = [call for call in children if _is_norm(call.module)]

    def after(call: _Call) -> _Call | None:
        taking = (n for n in norms if any(torch.equal(given, call.returned) for given in n.given))
        return next(taking, None)

    return [(call, after(call)) for call in children if not _is_norm(call.module)]


def gain_of(name: str, norm: _Call, part: _Call) -> torch.Tensor:
    """The norm's gain, read off its output for a large constant input.

    Raises:
        RefusalCliffError: The norm is not its gain times one number a token.
    """
    weight = next(norm.module.parameters(), torch.zeros(1))
    constant = torch.full(part.returned.shape[1:], 1e3).to(weight)
    gain = norm.module(constant[None])[0].detach().float()
    scaled = part.returned * gain.double().cpu()
    number = (scaled * norm.returned).sum(1, keepdim=True) / scaled.square().sum(1, keepdim=True)
    error = float((number * scaled - norm.returned).norm() / norm.returned.norm())
    if not error <= tolerance(weight.dtype):
        raise RefusalCliffError(
            f"The {type(norm.module).__name__} that follows {type(part.module).__name__} in {name} "
            f"is not a gain times one number per token (difference {error:.0%}), so the part that "
            "each head adds cannot be separated."
        )
    return gain


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _factors(output: torch.Tensor, states: Sequence[torch.Tensor]) -> tuple[list[float], float]:
    """Numbers that make ``output`` a sum of ``states``, and the largest relative error left.

    All ones if that is exact enough; else least squares, each channel divided by its size, so that
    a few channels of huge activations do not decide alone.
    """
    size = output.square().mean(0).sqrt().clamp_min(1e-30)
    columns = torch.stack([(state / size).flatten() for state in states], 1)
    target = (output / size).flatten()
    ones = torch.ones(len(states), dtype=torch.float64)
    if _left(columns, target, ones) < _EXACT:
        return ones.tolist(), _left(columns, target, ones)
    found = torch.linalg.lstsq(columns, target[:, None]).solution[:, 0]
    rounded = torch.where((found - 1).abs() < _EXACT, torch.ones_like(found), found)
    return rounded.tolist(), _left(columns, target, rounded)


def _left(columns: torch.Tensor, target: torch.Tensor, factors: torch.Tensor) -> float:
    return float((columns @ factors - target).norm() / target.norm())


def _projection_of(attention: _Call, calls: Sequence[_Call]) -> tuple[nn.Module | None, int, str]:
    """The linear layer whose output is the attention's, and how many heads it joins."""
    name, heads = type(attention.module).__name__, attention.softmax_heads
    inside = {module for module in attention.module.modules() if _is_linear(module)}
    same = [
        call.module
        for call in calls
        if call.module in inside and torch.equal(call.returned, attention.returned)
    ]
    if not same:
        return None, 0, f"the output of {name} is not that of one linear layer"
    if in_features(same[-1]) % heads:
        return None, 0, f"{name}: {in_features(same[-1])} inputs are not {heads} heads"
    return same[-1], heads, ""


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _check_visible(name: str, block: Block) -> None:
    """A part that adds the residual stream itself hides what it adds."""
    if abs(block.carry) > _EXACT:
        return
    raise RefusalCliffError(
        f"Block {block.layer} of {name} ({type(block.module).__name__}) adds its input inside one "
        f"of its parts ({', '.join(_part_names(block))}), so the part that attention adds cannot "
        "be separated. Heads of this architecture cannot be measured yet."
    )


def _part_names(block: Block) -> list[str]:
    parts = [*([block.attention] if block.attention else []), *block.others]
    return [type(part.module).__name__ for part in parts]


def _check_single(
    name: str,
    model: PreTrainedModel,
    layers: Sequence[nn.Module],
    rows: Sequence[torch.Tensor],
    calls: Sequence[Sequence[_Call]],
    allowed: float,
) -> None:
    """Each row alone must give what it gave in the batch."""
    for place, row in enumerate(rows):
        alone = _run(model, layers, [row])
        start = place * max(_LENGTHS)
        for number, (single, batched) in enumerate(zip(alone, calls, strict=True), start=1):
            expected = single[-1].returned
            got = batched[-1].returned[start : start + len(row)]
            error = float((got - expected).norm() / expected.norm())
            if not error <= allowed:
                raise RefusalCliffError(
                    f"Block {number} of {name} ({type(layers[number - 1]).__name__}) gives another "
                    f"result in a padded batch than for the row alone (relative difference "
                    f"{error:.1g}, rounding explains {allowed:.0e}). "
                    "A model must look back only; if this one does, load it with another attention "
                    "implementation, or report this architecture."
                )
