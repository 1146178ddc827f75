"""Optimizers. They update when the step of an Accumulator does; they have no step() of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from ctypes import Structure, byref, c_char, c_double, c_int64, c_void_p
from typing import Any

from . import _ffi, state
from ._arguments import REAL, double_array, flag, int64_array, require, shown
from ._ffi import lib
from ._handle import Handle, Uncopied
from .errors import GADTypeError, GAInvalidArgumentError
from .scaling import BatchScaling
from .schedules import Schedule, clock_constant
from .tensor import Tensor, handles_of


Parameters = Iterable["Tensor | dict[str, Any]"]
"""Tensors, or groups as torch.optim has them: dicts of "params" and what Optimizer.add_group takes."""


class ParameterGroup(Uncopied):
    """Some parameters of an optimizer and what they have of their own: see Optimizer.add_group."""

    _COPIED = "its settings"

    def __init__(self, optimizer: Optimizer, number: int, parameters: tuple[Tensor, ...]) -> None:
        self._optimizer = optimizer
        self._number = number
        self.parameters = parameters

    def _options(self, **fields: float) -> _ffi.GroupOptions:
        """As they are, but for the fields that are given."""
        options, given = _ffi.GroupOptions(), _ffi.GroupOptions(**fields)
        lib.ga_optimizer_group(self._optimizer.handle, self._number, byref(options))
        for name in fields:
            setattr(options, name, getattr(given, name))
        return options

    def _set(self, **fields: float) -> None:
        options = self._options(**fields)
        lib.ga_optimizer_set_group(self._optimizer.handle, self._number, byref(options))

    @property
    def lr_scale(self) -> float:
        """What the optimizer's learning rate is multiplied by."""
        value: float = self._options().learning_rate_scale
        return value

    @lr_scale.setter
    def lr_scale(self, value: float) -> None:
        self._set(learning_rate_scale=value)

    @property
    def weight_decay(self) -> float | None:
        """None: the optimizer's."""
        value = self._options().weight_decay
        return None if value < 0 else value

    @weight_decay.setter
    def weight_decay(self, value: float | None) -> None:
        self._set(weight_decay=_decay_or_own(value))

    @property
    def max_grad_norm(self) -> float:
        """The largest norm of the group's mean gradient, apart from all others; 0: clipped with the rest."""
        value: float = self._options().max_grad_norm
        return value

    @max_grad_norm.setter
    def max_grad_norm(self, value: float) -> None:
        self._set(max_grad_norm=value)


def _decay_or_own(value: float | None) -> float:
    """As the header has it: below 0 for the optimizer's own."""
    if value is None:
        return -1.0
    if REAL.checked("weight_decay", value) < 0:
        raise GAInvalidArgumentError(f"weight_decay is {value}: it must be at least 0, or None for the optimizer's")
    return value


class Optimizer(Handle):
    """The base of the optimizers below.

    A parameter is frozen by requires_grad = False: steps leave it and its state alone until that is True again.

    After close() an accumulator keeps what it needs.
    """

    # Exchanges of the weights with an average, by which copies of them are seen to be stale.
    _exchanges = 0

    def __init__(self, create: Callable[..., int], parameters: Parameters, options: Structure) -> None:
        given = _given(parameters)
        self.parameters: tuple[Tensor, ...] = tuple(_flat(given))
        out = c_void_p()
        handles = handles_of("parameters", self.parameters)
        create(byref(out), handles, len(handles), byref(options))
        self._hold(out.value)
        for group in given:
            if isinstance(group, dict):
                self.add_group(group.pop("params"), **group)

    def _hold(self, address: int | None) -> None:
        self._own(address, lib.ga_optimizer_free, "optimizer")
        self._schedule: Schedule | None = None
        self._scaling: BatchScaling | None = None
        self._groups: list[ParameterGroup] = []

    @staticmethod
    def borrow(handle: int, parameters: Iterable[Tensor]) -> Optimizer:
        """The optimizer of a ga_optimizer handle that somebody else owns, such as the C program that this
        interpreter runs in, and its parameters in their order. It is not freed here."""
        borrowed = Optimizer.__new__(Optimizer)
        borrowed.parameters = tuple(parameters)
        borrowed._hold(handle)
        borrowed._disown()
        return borrowed

    def add_group(
        self,
        parameters: Iterable[Tensor],
        *,
        lr_scale: float = 1.0,
        weight_decay: float | None = None,
        max_grad_norm: float = 0.0,
    ) -> ParameterGroup:
        """Gives some of the optimizer's parameters, which are in no other group, settings of their own.

        lr_scale: what the learning rate is multiplied by, so that one rate or schedule drives all groups.
        weight_decay: instead of the optimizer's. max_grad_norm: clips the norm of the group's mean gradient, apart
        from what the accumulator clips.
        """
        members = tuple(parameters)
        options = _ffi.GroupOptions(
            learning_rate_scale=lr_scale, weight_decay=_decay_or_own(weight_decay), max_grad_norm=max_grad_norm
        )
        number = c_int64()
        handles = handles_of("parameters", members)
        lib.ga_optimizer_add_group(self.handle, handles, len(handles), byref(options), byref(number))
        self._groups.append(ParameterGroup(self, number.value, members))
        return self._groups[-1]

    @property
    def groups(self) -> tuple[ParameterGroup, ...]:
        """The groups, without the parameters that are in none."""
        return tuple(self._groups)

    def _take_error(self) -> BaseException | None:
        """What a rule in Python has raised in the last step, once."""
        return None

    @property
    def lr(self) -> float:
        """The learning rate as it was set: that of every update, or what a schedule multiplies. See next_lr."""
        value = c_double()
        lib.ga_optimizer_learning_rate(self.handle, byref(value))
        return value.value

    @lr.setter
    def lr(self, value: float) -> None:
        lib.ga_optimizer_set_learning_rate(self.handle, value)

    @property
    def next_lr(self) -> float:
        """The learning rate of the next update: lr times the schedule's factor. A scaling waits for the weight of its
        window, and is in the report alone."""
        value = c_double()
        lib.ga_optimizer_next_learning_rate(self.handle, byref(value))
        return value.value

    @property
    def schedule(self) -> Schedule | None:
        """What the learning rate follows. It reads a clock that goes on from where it is; a plateau begins anew."""
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: Schedule | None) -> None:
        require("schedule", schedule, (Schedule, type(None)), "one of gradaccum.schedules, or None")
        lib.ga_optimizer_set_schedule(self.handle, None if schedule is None else byref(schedule.options()))
        self._schedule = schedule

    @property
    def scaling(self) -> BatchScaling | None:
        """How updates follow the weight of their window."""
        return self._scaling

    @scaling.setter
    def scaling(self, scaling: BatchScaling | None) -> None:
        require("scaling", scaling, (BatchScaling, type(None)), "a BatchScaling, or None")
        lib.ga_optimizer_set_scaling(self.handle, None if scaling is None else byref(scaling.options()))
        self._scaling = scaling

    def report_metric(self, metric: float) -> None:
        """Shows a metric, such as a loss of validation, to a Plateau with signal="metric"."""
        lib.ga_optimizer_report_metric(self.handle, metric)

    def clock(self, clock: str = "updates") -> float:
        """What schedules read: how many "updates" were applied, or how much "weight"."""
        value = c_double()
        lib.ga_optimizer_clock(self.handle, clock_constant(clock), byref(value))
        return value.value

    def state_dict(self) -> dict[str, Any]:
        """A copy of what updates have made of the optimizer, for load_state_dict(), in numpy arrays and plain values.

        "state" has, by the place of each parameter, its "step" and the arrays of its rule under the names of PyTorch,
        such as "exp_avg"; "updates" and "weight" are the clock. Unlike PyTorch's it has no "param_groups": weights,
        hyperparameters, groups, schedules, scalings and averages are the program's to bring back. Nor has it a window
        in progress, or the losses and norms that an accumulator finds outliers with.
        """
        size = c_int64()
        lib.ga_optimizer_state_bytes(self.handle, byref(size))
        data = bytearray(size.value)
        lib.ga_optimizer_save_state(self.handle, (c_char * len(data)).from_buffer(data), len(data))
        return state.to_dict(data)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Goes on from a state_dict() of an optimizer with the same rule and shapes; with the weights of then, to the
        bit. Set a schedule before: a new Plateau has seen nothing. What it refuses changes nothing."""
        data = state.to_bytes(state_dict)
        lib.ga_optimizer_load_state(self.handle, data, len(data))


def _numbers(name: str, values: Iterable[float], *fields: str) -> dict[str, float]:
    """Several numbers that are one argument, as fields of the C struct."""
    given = double_array(name, values)
    if len(given) != len(fields):
        raise GAInvalidArgumentError(f"{name} has {len(given)} entries: give {len(fields)}")
    return dict(zip(fields, given))


def require_optimizer(optimizer: object) -> None:
    require("optimizer", optimizer, Optimizer, "one of this package, such as AdamW")


def _given(parameters: Any) -> list[Any]:
    """A list of the tensors and groups, each with a tuple of its own."""
    if isinstance(parameters, (Tensor, dict, str)) or not isinstance(parameters, Iterable):
        raise GADTypeError(
            f"parameters is {shown(parameters)}: it must be a sequence of tensors or groups, such as [tensor] or, of a "
            "model of PyTorch, gradaccum.torch.parameters(model)"
        )
    given = list(parameters)
    for index, part in enumerate(given):
        if isinstance(part, dict):
            members = part.get("params")
            if isinstance(members, Tensor) or not isinstance(members, Iterable):
                raise GADTypeError(
                    f'parameters[{index}]["params"] is {shown(members)}: it must be a sequence of tensors'
                )
            given[index] = {**part, "params": tuple(members)}
    return given


def _flat(parameters: Parameters) -> list[Tensor]:
    """The tensors, and those of the groups."""
    return [x for part in parameters for x in (part["params"] if isinstance(part, dict) else (part,))]


class SGD(Optimizer):
    """Stochastic gradient descent, as torch.optim.SGD."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        options = _ffi.SGDOptions(
            learning_rate=lr, momentum=momentum, weight_decay=weight_decay, nesterov=flag("nesterov", nesterov)
        )
        super().__init__(lib.ga_sgd_create, parameters, options)


class Adam(Optimizer):
    """Adam, as torch.optim.Adam: weight decay is added to the gradient."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        options = _ffi.AdamOptions(
            learning_rate=lr, **_numbers("betas", betas, "beta1", "beta2"), eps=eps, weight_decay=weight_decay
        )
        super().__init__(lib.ga_adam_create, parameters, options)


class AdamW(Optimizer):
    """AdamW, as torch.optim.AdamW: weight decay is decoupled."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        options = _ffi.AdamWOptions(
            learning_rate=lr, **_numbers("betas", betas, "beta1", "beta2"), eps=eps, weight_decay=weight_decay
        )
        super().__init__(lib.ga_adamw_create, parameters, options)


class RAdam(Optimizer):
    """Rectified Adam, as torch.optim.RAdam."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
    ) -> None:
        options = _ffi.RAdamOptions(
            decoupled_weight_decay=flag("decoupled_weight_decay", decoupled_weight_decay),
            learning_rate=lr,
            **_numbers("betas", betas, "beta1", "beta2"),
            eps=eps,
            weight_decay=weight_decay,
        )
        super().__init__(lib.ga_radam_create, parameters, options)


class NAdam(Optimizer):
    """Adam with Nesterov's momentum, as torch.optim.NAdam."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 2e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
    ) -> None:
        options = _ffi.NAdamOptions(
            decoupled_weight_decay=flag("decoupled_weight_decay", decoupled_weight_decay),
            learning_rate=lr,
            **_numbers("betas", betas, "beta1", "beta2"),
            eps=eps,
            weight_decay=weight_decay,
            momentum_decay=momentum_decay,
        )
        super().__init__(lib.ga_nadam_create, parameters, options)


class Lion(Optimizer):
    """Lion, as its authors' PyTorch version: the sign of a momentum is the direction."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        options = _ffi.LionOptions(
            learning_rate=lr, **_numbers("betas", betas, "beta1", "beta2"), weight_decay=weight_decay
        )
        super().__init__(lib.ga_lion_create, parameters, options)


class LAMB(Optimizer):
    """LAMB (You et al., arXiv 1904.00962): the direction of AdamW, with a step as long as a share of the parameter."""

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
    ) -> None:
        options = _ffi.LAMBOptions(
            learning_rate=lr, **_numbers("betas", betas, "beta1", "beta2"), eps=eps, weight_decay=weight_decay
        )
        super().__init__(lib.ga_lamb_create, parameters, options)


class LARS(Optimizer):
    """LARS (You et al., arXiv 1708.03888): momentum, with a rate per parameter after the lengths of it and its gradient.

    A first step is lr times trust_coefficient times as long as the parameter, weight decay aside.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1.0,
        *,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        trust_coefficient: float = 1e-3,
    ) -> None:
        options = _ffi.LARSOptions(
            learning_rate=lr, momentum=momentum, weight_decay=weight_decay, trust_coefficient=trust_coefficient
        )
        super().__init__(lib.ga_lars_create, parameters, options)


class Adafactor(Optimizer):
    """Adafactor, as torch.optim.Adafactor: second moments by rows and columns, steps relative to the parameter.

    eps[0] None is the distance of 1 from the next float32, as in PyTorch.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-2,
        *,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        options = _ffi.AdafactorOptions(
            learning_rate=lr,
            beta2_decay=beta2_decay,
            clipping_threshold=d,
            weight_decay=weight_decay,
            **_numbers("eps", self._eps(eps), "eps1", "eps2"),
        )
        super().__init__(lib.ga_adafactor_create, parameters, options)


    @staticmethod
    def _eps(eps: Any) -> Any:
        """With the number that None stands for."""
        if not isinstance(eps, Sequence) or eps[:1] not in ((None,), [None]):
            return eps
        return (_ffi.AdafactorOptions().eps1, *eps[1:])


class Muon(Optimizer):
    """Muon, as torch.optim.Muon: the momentum of a matrix, made nearly orthogonal, is its direction.

    AdamW updates the parameters that have not two axes, and the tensors of adamw_parameters, such as an embedding and an
    output head; its learning rate is adamw_lr_ratio times lr.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        *,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        adamw_lr_ratio: float = 1.0,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float = 1e-2,
        adamw_parameters: Iterable[Tensor] = (),
    ) -> None:
        parameters = _given(parameters)
        if adjust_lr_fn is not None and adjust_lr_fn not in _MUON_ADJUSTMENTS:
            raise GAInvalidArgumentError(
                f"adjust_lr_fn is {adjust_lr_fn!r}: it must be None or one of {', '.join(_MUON_ADJUSTMENTS)}"
            )
        handles = list(handles_of("parameters", _flat(parameters)))
        own = handles_of("adamw_parameters", adamw_parameters)
        try:
            places = [handles.index(handle) for handle in own]
        except ValueError:
            raise GAInvalidArgumentError("adamw_parameters holds a tensor that is none of parameters") from None
        options = _ffi.MuonOptions(
            nesterov=flag("nesterov", nesterov),
            learning_rate=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            **_numbers("ns_coefficients", ns_coefficients, *(f"ns_coefficient_{letter}" for letter in "abc")),
            eps=eps,
            ns_steps=ns_steps,
            adjust_lr=_MUON_ADJUSTMENTS[adjust_lr_fn or "original"],
            adamw_learning_rate_ratio=adamw_lr_ratio,
            **_numbers("adamw_betas", adamw_betas, "adamw_beta1", "adamw_beta2"),
            adamw_eps=adamw_eps,
            adamw_weight_decay=adamw_weight_decay,
            adamw_parameters=int64_array("adamw_parameters", places),
            adamw_parameter_count=len(places),
        )
        super().__init__(lib.ga_muon_create, parameters, options)


_MUON_ADJUSTMENTS = {
    "original": _ffi.MUON_ORIGINAL,
    "match_rms_adamw": _ffi.MUON_MATCH_RMS_ADAMW,
    "spectral_unclamped": _ffi.MUON_SPECTRAL_UNCLAMPED,
}


class AdamW8bit(Optimizer):
    """AdamW with moments of 8 bits in blocks of 256, in the place of bitsandbytes.optim.AdamW8bit, with codes of its own.

    Parameters with fewer than min_8bit_size elements keep moments in float32.
    """

    def __init__(
        self,
        parameters: Parameters,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        min_8bit_size: int = 4096,
    ) -> None:
        options = _ffi.AdamW8bitOptions(
            learning_rate=lr,
            **_numbers("betas", betas, "beta1", "beta2"),
            eps=eps,
            weight_decay=weight_decay,
            min_8bit_size=min_8bit_size,
        )
        super().__init__(lib.ga_adamw8bit_create, parameters, options)
